"""How a flow model came from noise to a picture: every state on the way, for objectives that train through it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .direct_align import euler_step, per_sample


@dataclass(frozen=True)
class Trajectory:
    """N Euler steps of B samples.

    sigmas: (N + 1,) float64 noise shares, from the noisiest down to 0. states: (N + 1, B, C, H, W), the last of them
    the clean latents.
    """

    sigmas: Tensor
    states: Tensor

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def x0(self) -> Tensor:
        return self.states[-1]

    @property
    def widths(self) -> Tensor:
        """(N,): by how much each step changes sigma, negative."""
        return self.sigmas.diff()

    def part(self, samples: slice) -> "Trajectory":
        return Trajectory(self.sigmas, self.states[:, samples])

    def state(self, step: Tensor) -> Tensor:
        """(B, C, H, W): what each sample's step (B,), from 0, began with."""
        return self.states[step, torch.arange(len(step))]

    def velocity(self, step: Tensor) -> Tensor:
        """(B, C, H, W): what the model said there."""
        before = self.state(step)
        return (self.state(step + 1) - before) / per_sample(self.widths[step], before)


@torch.no_grad()
def by_euler(velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, sigmas: Tensor) -> Trajectory:
    """From start (B, C, H, W), a state at sigmas[0], by velocity(x, sigma), sigma being (B,)."""
    states = [start]
    for sigma, after in pairwise(sigmas.expand(len(start), -1).T):
        states.append(euler_step(states[-1], velocity(states[-1], sigma), sigma, after))
    return Trajectory(sigmas, torch.stack([state.to(states[-1]) for state in states]))
