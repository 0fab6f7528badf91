"""Pictures as tensors and as PIL's, and what is measured in them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) float32 in [0, 1] from a picture in RGB, 8 bits a channel."""
    return torch.from_numpy(np.array(picture, np.float32) / np.float32(255))[None]


def to_picture(image: Tensor) -> Image.Image:
    """A picture, 8 bits a channel, from (H, W, 3); what lies outside of [0, 1] is cut off, and NaN is black."""
    return Image.fromarray((image.float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy())


def pixel_saturation(images: Tensor, least: float = 1e-6) -> Tensor:
    """(B, H, W): the HSV saturation (max - min) / max of each pixel of images (B, 3, H, W) in [0, 1].

    least: the smallest max that is divided by, so that black is grey.
    """
    high = images.amax(1)
    return (high - images.amin(1)) / high.clamp(min=least)
