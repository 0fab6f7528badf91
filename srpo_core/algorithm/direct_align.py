"""Direct-Align: the clean latent from one model step and the noise we injected ourselves.

With `e = (noise - x0) - velocity` and `w = |sigma_in - sigma_out| / (1 - sigma_out)` the
recovered latent is `x0 + w e` (denoise branch) or `x0 - w e` (inversion branch), while plain
one-step prediction gives `x0 + sigma_in e` (arXiv 2509.06942, section 3.1; its printed formula
drops the division by `1 - sigma_out`).

All latents are (B, C, H, W); sigmas are (B,) in [0, 1]. What comes in half precision is computed in fp32: in bf16
the recovered latent would be off by 3 to 7 %.
"""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...), in the type and on the device of `like`."""
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))


def inject(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Stage 1: the noisy latent `(1 - sigma) x0 + sigma noise`."""
    x0 = at_least_fp32(x0)
    s = per_sample(sigma, x0)
    return (1 - s) * x0 + s * at_least_fp32(noise)


def euler_step(x: Tensor, velocity: Tensor, sigma_in: Tensor, sigma_out: Tensor) -> Tensor:
    """Stage 2: one step of the model, towards less noise or towards more."""
    x = at_least_fp32(x)
    return x + per_sample(sigma_out - sigma_in, x) * at_least_fp32(velocity)


def recover(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Stage 3: the clean latent of `x` at `sigma < 1`, given the noise that is in it."""
    x = at_least_fp32(x)
    s = per_sample(sigma, x)
    return (x - s * at_least_fp32(noise)) / (1 - s)


def recovery_slope(sigma_in: Tensor, sigma_out: Tensor) -> Tensor:
    """(B,): d recovered / d velocity, negative for the denoise branch."""
    return (sigma_out - sigma_in) / (1 - sigma_out)
