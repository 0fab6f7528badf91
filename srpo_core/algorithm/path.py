"""How far the path bends that a sampler goes from noise to a picture."""

import torch
from torch import Tensor


class Path:
    """The path of B samples, in the coordinates of a flow, as the model's velocities lead along it.

    As with Euler's sampler, each velocity holds until the model is asked again, at less noise.
    """

    def __init__(self):
        self.levels = 0  # at which the model was asked
        self._noisiest = 0.0
        self._share = 0.0  # of noise, down to which the sums go
        self._velocity = torch.zeros(())  # there, (B, ...)
        self._sum = torch.zeros(())  # of the velocity, over the shares that have passed
        self._energy = torch.zeros(())  # (B,), of its square

    @torch.no_grad()
    def visit(self, share: float, velocity: Tensor):
        """The model was asked at this share of noise; above the last one some samplers ask, to correct a step."""
        if share > self._share and self._noisiest:
            return
        self.levels += share != self._share
        if self._noisiest:
            self._sum, self._energy = self._until(share)
        else:
            self._noisiest = share
            self._sum = torch.zeros_like(velocity, dtype=torch.float32)
            self._energy = self._sum.flatten(1).sum(1)
        self._share = share
        self._velocity = velocity.float()

    def curvature(self) -> Tensor:
        """(B,): the mean of |v - d|^2 over the shares of noise, over |d|^2; d is the mean of v, which is noise - x0.

        It is the straightness S of rectified flow (arXiv 2209.03003, section 2), which others call curvature (arXiv
        2301.12003), of a path of length 1: 0 where one step leads where many do.
        It is that of the steps that were made: fewer of them see less of it, and one alone sees nothing, NaN.
        """
        if self.levels < 2:
            return torch.full((1,), torch.nan)
        total, energy = self._until(0.0)
        return (self._noisiest * energy / total.flatten(1).square().sum(1) - 1).clamp(min=0)

    def _until(self, share: float) -> tuple[Tensor, Tensor]:
        """Both sums, with the way down to this share."""
        way = self._share - share
        return self._sum + way * self._velocity, self._energy + way * self._velocity.flatten(1).square().sum(1)
