"""Rewards that are the product of an image's and a text's feature: CLIP, SigLIP, HPS, PickScore."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pixels import CLIP_MEAN, CLIP_STD, Pixels
from .placement import OnText, Placement, unheard, where_it_is
from .text_features import TextFeatures

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase


class DotProductReward:
    """`scale * cosine(image, text)`.

    image_tower: normalised pixels (B, 3, size, size) to features (B, D); frozen here.
    text_tower: called when texts are new; gives the module from token ids (N, L) to features (N, D), which is let
    go once they are encoded.
    tokenize: texts to token ids (N, L).
    pixels: the image tower's preprocessing.
    scale: 1 for HPS, else `exp(logit_scale) / 20` (the scale of PickScore).
    features: the texts that are known.
    place, on_text: a host that manages memory, or can be told to stop, sets its own.
    """

    place: Placement = staticmethod(where_it_is)
    on_text: OnText = staticmethod(unheard)

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: Callable[[], nn.Module],
        *,
        tokenize: Callable[[list[str]], Tensor],
        pixels: Pixels,
        scale: float,
        features: TextFeatures | None = None,
    ):
        self.image_tower = image_tower.eval().requires_grad_(False)
        self.text_tower = text_tower
        self.tokenize = tokenize
        self.pixels = pixels
        self.scale = scale
        self.features = TextFeatures() if features is None else features

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """See Reward."""
        return self.score_many(images, texts)[0]

    def score_many(self, images: Tensor, *texts: list[str]) -> Tensor:
        """(len(texts), B), with one pass over the images."""
        image = self.embed(images)
        text = torch.stack([self.text_features(row) for row in texts]).to(image)
        return self.scale * (image * text).sum(-1)

    def embed(self, images: Tensor) -> Tensor:
        """See EmbeddingReward."""
        return self.image_features(images.to(self.place(self.image_tower)))

    def image_features(self, images: Tensor) -> Tensor:
        """(B, D) float32, normalised, from images (B, 3, H, W) in [0, 1]."""
        dtype = next(self.image_tower.parameters()).dtype
        return F.normalize(self.image_tower(self.pixels(images).to(dtype)).float(), dim=-1)

    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) float32, normalised, on the CPU."""
        self.prepare(texts)
        return self.features.get(texts)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, texts: list[str]):
        """Encode the texts that are new.

        One by one: in a batch the last bits depend on the others, and so would a run on where it was interrupted.
        """
        missing = self.features.missing(texts)
        if not missing:
            return
        tower = self.text_tower().eval()
        device = self.place(tower)
        encoded: list[Tensor] = []
        try:
            for text in missing:
                self.on_text(len(encoded), len(missing))
                encoded.append(tower(self.tokenize([text]).to(device)))
        finally:  # what is encoded is kept
            if encoded:
                self.features.add(missing[: len(encoded)], F.normalize(torch.cat(encoded).float(), dim=-1).cpu())


class ImageTower(nn.Module):
    """The image side of a transformers CLIPModel."""

    def __init__(self, model: "CLIPModel"):
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)


class TextTower(nn.Module):
    """The text side of a transformers CLIPModel."""

    def __init__(self, model: "CLIPModel"):
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        return self.text_projection(self.text_model(input_ids=tokens).pooler_output)


def clip_reward(
    model: "CLIPModel",
    tokenizer: "PreTrainedTokenizerBase",
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> DotProductReward:
    """The reward of a whole transformers CLIPModel, frozen here, whose text tower stays in memory.

    tokenizer: its tokenizer, called with a list of strings. mean, std: the pixel statistics of its training.
    """
    text = TextTower(model.eval().requires_grad_(False))

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    pixels = Pixels(model.config.vision_config.image_size, mean=mean, std=std)
    scale = model.logit_scale.exp().item() / 20
    return DotProductReward(
        image_tower=ImageTower(model), text_tower=lambda: text, tokenize=tokenize, pixels=pixels, scale=scale
    )
