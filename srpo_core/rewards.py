"""Differentiable rewards: how well an image fits a text."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Reward(Protocol):
    def score(self, images: Tensor, *texts: list[str]) -> Tensor:
        """(len(texts), B): each image (B, 3, H, W in [0, 1]) against the B texts of each list.

        Differentiable in the images, with one pass over them whatever the number of lists.
        """


def resize_and_crop(images: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing, differentiable: shorter side to `size` (bicubic, antialiased), centre crop."""
    shorter = min(images.shape[-2:])
    height, width = (size * side // shorter for side in images.shape[-2:])
    images = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
    top, left = round((height - size) / 2), round((width - size) / 2)  # torchvision's rounding
    return images[..., top : top + size, left : left + size]


class ClipReward:
    """`exp(logit_scale) / 20 * cosine(image, text)` of a transformers CLIPModel (the scale of PickScore).

    model: CLIPModel, frozen here. tokenizer: its tokenizer, called with a list of strings.
    mean, std: the pixel statistics of its training.
    """

    def __init__(self, model, tokenizer, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.size = model.config.vision_config.image_size
        self.mean, self.std = mean, std
        self._text_features: dict[str, Tensor] = {}

    def score(self, images: Tensor, *texts: list[str]) -> Tensor:
        pixels = resize_and_crop(images.float(), self.size)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pooled = self.model.vision_model(pixel_values=((pixels - mean) / std).to(self.model.dtype)).pooler_output
        features = F.normalize(self.model.visual_projection(pooled).float(), dim=-1)
        scale = self.model.logit_scale.float().exp() / 20
        return torch.stack([scale * (features * self.text_features(t).to(features)).sum(-1) for t in texts])

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) normalised features; each text goes through the text tower once in the life of the reward."""
        for text in set(texts) - self._text_features.keys():
            tokens = self.tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
            pooled = self.model.text_model(input_ids=tokens.to(self.model.device)).pooler_output
            self._text_features[text] = F.normalize(self.model.text_projection(pooled).float(), dim=-1)
        return torch.cat([self._text_features[text] for text in texts])
