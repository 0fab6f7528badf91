"""From an image to what a vision tower was trained to see, differentiably."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WITHOUT_BACKWARD = ("mps",)  # devices on which an antialiased resize has none
LONGEST = 16  # times the shorter side; what lies beyond is cropped away in the end, so it is not resized first


@dataclass(frozen=True)
class Pixels:
    """The preprocessing of a vision tower.

    size: side of its square input. resize: "crop", shorter side to `size` and the centre cut out (CLIP), or
    "squash", both sides to `size` (SigLIP). interpolation: "bicubic" or "bilinear", always antialiased.
    mean, std: pixel statistics, of values in [0, 1].
    """

    size: int
    resize: str = "crop"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) float32, from images (B, C, H, W) in [0, 1]; C is 3, 1 (grey) or 4 (alpha, ignored)."""
        images = as_rgb(images).float()
        pixels = self._crop(images) if self.resize == "crop" else self._scale(images, self.size, self.size)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _scale(self, images: Tensor, height: int, width: int) -> Tensor:
        if images.device.type in WITHOUT_BACKWARD:
            sides = zip(images.shape[-2:], (height, width))
            down, across = (resize_matrix(old, new, self.interpolation).to(images) for old, new in sides)
            return down @ images @ across.T
        return F.interpolate(images, size=(height, width), mode=self.interpolation, antialias=True)

    def _crop(self, images: Tensor) -> Tensor:
        shorter = min(images.shape[-2:])
        images = centre(images, *(min(side, LONGEST * shorter) for side in images.shape[-2:]))
        images = self._scale(images, *(self.size * side // shorter for side in images.shape[-2:]))
        return centre(images, self.size, self.size)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # it is saved for backward
def resize_matrix(old: int, new: int, interpolation: str) -> Tensor:
    """(new, old) float32 on the CPU: the antialiased resize of one side, which is linear, as a matrix."""
    return F.interpolate(torch.eye(old)[None, None], size=(new, old), mode=interpolation, antialias=True)[0, 0]


def centre(images: Tensor, height: int, width: int) -> Tensor:
    """The middle (height, width) of images (..., H, W), with torchvision's rounding."""
    top = round((images.shape[-2] - height) / 2)
    left = round((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


def as_rgb(images: Tensor) -> Tensor:
    """(B, 3, H, W) from colour, grey (B, 1, H, W) or colour with alpha (B, 4, H, W), which is ignored.

    Raises ValueError for any other shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(
            f"A reward can't score images of shape {tuple(images.shape)}: give it (B, 3, H, W), "
            "grey (B, 1, H, W), or with alpha (B, 4, H, W)."
        )
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
