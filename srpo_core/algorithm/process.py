"""The noising process of a model, and its place in the coordinates of Direct-Align.

A model's states mix a clean latent and unit noise, `alpha(sigma) x0 + beta(sigma) noise`: a flow by `1 - sigma` and
`sigma` (rectified flow, arXiv 2209.03003), an eps, v or EDM model by 1 and `sigma` (arXiv 2206.00364, section 4). All
divided by `alpha + beta` they are the flow's states at the noise share `s = beta / (alpha + beta)`,
`(1 - s) x0 + s noise`, so that injecting, stepping and recovering are the same for all of them; a step between two
states, with what the model says of x0 held, is the same step in either coordinates (DDIM, arXiv 2010.02502, eq. 12).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .direct_align import per_sample

PROBES = (0.0, 0.1, 0.25, 0.5, 0.75)  # sigmas that every process has
EXACT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Process:
    """`alpha(sigma) = 1 - decay sigma` and `beta(sigma) = gain sigma`, for sigma in [0, sigma_max].

    Sigmas and noise shares are tensors of any shape; x is (B, ...) with sigma (B,).
    """

    decay: float = 1.0
    gain: float = 1.0
    sigma_max: float = 1.0

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 - self.decay * sigma

    def beta(self, sigma: Tensor) -> Tensor:
        return self.gain * sigma

    def total(self, sigma: Tensor) -> Tensor:
        """alpha + beta: 1 at every sigma of a flow, to the bit."""
        return 1 + (self.gain - self.decay) * sigma

    def share(self, sigma: Tensor) -> Tensor:
        """The noise share in [0, 1]: beta / (alpha + beta)."""
        return self.gain * sigma / self.total(sigma)

    def sigma(self, share: Tensor) -> Tensor:
        """The sigma of a noise share; that of a flow is the share itself."""
        return share / (self.gain + (self.decay - self.gain) * share)

    @property
    def largest_share(self) -> float:
        return self.share(torch.tensor(self.sigma_max, dtype=torch.float64)).item()

    def state(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The model's state of a flow's state x (B, ...) at sigma (B,)."""
        return x * per_sample(self.total(sigma), x)


def process_of(mix: Callable[[Tensor, Tensor, Tensor], Tensor], sigma_max: float) -> Process:
    """The process by which `mix` makes a state of sigma, noise and a clean latent, each (1, 1).

    Raises ValueError where that is none of the kinds above, such as for a model that is asked without any noise.
    """
    ones = torch.ones(1, 1, dtype=torch.float64)

    def weights(sigma: float) -> tuple[float, float]:
        level = torch.full((1,), sigma, dtype=torch.float64)
        return mix(level, 0 * ones, ones.clone()).item(), mix(level, ones.clone(), 0 * ones).item()

    alpha, beta = weights(0.5)
    process = Process(decay=2 * (1 - alpha), gain=2 * beta, sigma_max=sigma_max)
    for sigma in PROBES:
        alpha, beta = weights(sigma)
        level = torch.tensor(sigma, dtype=torch.float64)
        if abs(process.alpha(level) - alpha) > EXACT or abs(process.beta(level) - beta) > EXACT or process.gain <= 0:
            raise ValueError(
                f"At sigma {sigma} a state holds {alpha:.4g} of the picture and {beta:.4g} of the noise, which is the "
                "process of neither a flow nor a diffusion model."
            )
    return process
