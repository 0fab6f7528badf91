"""Whether the gradient that comes back through a decoder is that of its pictures.

A decoder may lose a part of it without a word: one that decodes in pieces, say, and keeps what it needs of the last
piece without its graph. So its pictures are held against it once, a step ahead and a step back along a random
direction of the latent; the way back must say the same slope.
"""

import math

import torch
from torch import Tensor

from .gradient_check import TOLERANCE
from .protocols import Decoder, Shape

STEP = 0.05  # of latents, whose deviation is about 1: far above the rounding of bf16, far below the curvature


def check_decoder(decoder: Decoder, shape: Shape):
    """Raises RuntimeError, a sentence, if the gradient at a latent (1, C, ...) of this shape is wrong.

    Of a decoder whose pictures are not finite, or all the same, it says nothing.
    """
    sampled, pulled = slopes(decoder, shape)
    if not sampled or not math.isfinite(sampled) or abs(pulled / sampled - 1) <= TOLERANCE:
        return
    raise RuntimeError(
        "The gradient that comes back through this VAE is wrong, and nothing was trained on it: along one random "
        f"direction of the latent its pictures change at the rate {sampled:.4g}, and by the gradient it is "
        f"{pulled:.4g}, {pulled / sampled:.2f} times that, where {1 - TOLERANCE:.2f} to {1 + TOLERANCE:.2f} would do. "
        "Load the VAE that was published with the model."
    )


def slopes(decoder: Decoder, shape: Shape) -> tuple[float, float]:
    """How fast the pictures change along the direction: as decoded, and as the gradient has it."""
    generator = torch.Generator().manual_seed(0)
    x, along = torch.randn(2, *shape, generator=generator)
    ahead, back = (decoder.decode(x + step * along).value.double() for step in (STEP, -STEP))
    difference = ahead - back
    size = difference.norm().item()
    decoded = decoder.decode(x)
    gradient = decoded.pull((difference / (size or 1.0)).to(decoded.value))
    return size / (2 * STEP), _product(gradient, along)


def _product(a: Tensor, b: Tensor) -> float:
    return (a.cpu().double() * b.double()).sum().item()
