"""Direct-Align: the clean latent from one model step and the noise we injected ourselves.

With `e = (noise - x0) - velocity` and `w = |sigma_in - sigma_out| / (1 - sigma_out)` the
recovered latent is `x0 + w e` (denoise branch) or `x0 - w e` (inversion branch), while plain
one-step prediction gives `x0 + sigma_in e` (arXiv 2509.06942, section 3.1; its printed formula
drops the division by `1 - sigma_out`).

All latents are (B, C, H, W); sigmas are (B,) in [0, 1].
"""

from torch import Tensor


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...), in the type and on the device of `like`."""
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))


def inject(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Stage 1: the noisy latent `(1 - sigma) x0 + sigma noise`."""
    s = per_sample(sigma, x0)
    return (1 - s) * x0 + s * noise


def euler_step(x: Tensor, velocity: Tensor, sigma_in: Tensor, sigma_out: Tensor) -> Tensor:
    """Stage 2: one step of the model, towards less noise or towards more."""
    return x + per_sample(sigma_out - sigma_in, x) * velocity


def recover(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Stage 3: the clean latent of `x` at `sigma < 1`, given the noise that is in it."""
    s = per_sample(sigma, x)
    return (x - s * noise) / (1 - s)


def recovery_slope(sigma_in: Tensor, sigma_out: Tensor) -> Tensor:
    """(B,): d recovered / d velocity, negative for the denoise branch."""
    return (sigma_out - sigma_in) / (1 - sigma_out)
