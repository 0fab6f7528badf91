"""Ways from a sampled picture to a latent that is scored, and from its gradient back into the model."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .direct_align import per_sample
from .guard import NO_GUARD, Guard
from .noise_levels import Branch
from .protocols import FlowModel
from .step import Compared, Held, Noised, Recovered, hold, one_step_recover
from .trajectory import Trajectory


@dataclass(frozen=True)
class Sampled:
    """Clean latents and the noise that they are of, both (B, C, H, W), with the seeds of B samples."""

    x0: Tensor
    noise: Tensor
    seeds: tuple[int, ...]

    def part(self, samples: slice) -> "Sampled":
        return Sampled(self.x0[samples], self.noise[samples], self.seeds[samples])


@dataclass(frozen=True)
class Traced(Sampled):
    """The same, with how the model came from the noise to the latents."""

    trajectory: Trajectory

    def part(self, samples: slice) -> "Traced":
        rest = super().part(samples)
        return Traced(rest.x0, rest.noise, rest.seeds, self.trajectory.part(samples))


class Way(Protocol):
    """One recovered latent of each sample, and the way back from it.

    branch: where in the noise levels it is; strengths and logs go by it.
    """

    branch: Branch

    def recover(
        self, flow: FlowModel, cond: Any, *, compared: Compared | None = None, guard: Guard = NO_GUARD
    ) -> Recovered: ...


@dataclass(frozen=True)
class OneStep:
    """One step of the model from a noised latent; see `one_step_recover`. share: of the gradient."""

    noised: Noised
    branch: Branch
    share: float = 1.0

    def recover(
        self, flow: FlowModel, cond: Any, *, compared: Compared | None = None, guard: Guard = NO_GUARD
    ) -> Recovered:
        found = one_step_recover(flow, cond, self.noised, self.branch, compared=compared, guard=guard)
        return found.weighed(self.share)


@dataclass(frozen=True)
class ThroughSteps:
    """The clean latent of a trajectory, and the way back through K of its steps.

    chosen: (B, K), in order. coupling: (B, K), how much of the gradient at a step's input goes on to the steps before
    it; 1 is back-propagation through time, 0 none. scale: (B,), of the gradient at each velocity. What a guard adds at
    a velocity goes on as the rest does.
    """

    trajectory: Trajectory
    seeds: tuple[int, ...]
    chosen: Tensor
    coupling: Tensor
    scale: Tensor

    @property
    def branch(self) -> Branch:
        return down_from(self.trajectory.sigmas[self.chosen[:, 0]])

    def recover(
        self, flow: FlowModel, cond: Any, *, compared: Compared | None = None, guard: Guard = NO_GUARD
    ) -> Recovered:
        held = [self._hold(step, flow, compared, guard) for step in self.chosen.T] if compared else []

        def pull(gradient: Tensor, weight: float):
            gradient = weight * gradient
            for number, step in reversed(list(enumerate(self.chosen.T))):
                coupling = self.coupling[:, number]
                velocity = flow.velocity(*self._place(step), cond, through_x=bool(coupling.any()))
                at_velocity = gradient * per_sample(self.scale * self.trajectory.widths[step], gradient)
                if compared:
                    at_velocity[: compared.count] += weight / len(held) * held[number].away
                at_x = velocity.pull(at_velocity)
                if at_x is not None:
                    gradient = gradient + per_sample(coupling, at_x) * at_x

        recovered = Recovered(self.trajectory.x0, pull, flow.parameters, self.seeds)
        if not held:
            return recovered
        ratio = torch.stack([each.ratio for each in held]).mean(0)
        return replace(recovered, velocity_ratio=ratio, guard_loss=torch.stack([each.loss for each in held]).mean(0))

    def _place(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) and sigma (B,) before each sample's step (B,)."""
        return self.trajectory.state(step), self.trajectory.sigmas[step]

    def _hold(self, step: Tensor, flow: FlowModel, compared: Compared, guard: Guard) -> Held:
        part = slice(compared.count)
        x, sigma = self._place(step)
        velocity = self.trajectory.velocity(step)
        return hold(flow, x[part], sigma[part], velocity[part], cond=compared.cond, guard=guard)


def to_the_end(x: Tensor, sigma: Tensor, sampled: Sampled) -> OneStep:
    """The whole way down in one step, from the state x (B, C, H, W) at sigma (B,) of a rollout.

    Its noise is the one that, mixed with the clean latent, gives that state.
    """
    s = per_sample(sigma, x)
    noise = (x - (1 - s) * sampled.x0) / s
    branch = down_from(sigma)
    return OneStep(Noised(sampled.x0, noise, (branch, branch), sampled.seeds), branch)


def down_from(sigma: Tensor) -> Branch:
    """From sigma (B,) to none."""
    sigma = sigma.double()
    return Branch("denoise", sigma, torch.zeros_like(sigma), torch.zeros(len(sigma), dtype=torch.int64))
