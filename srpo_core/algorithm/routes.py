"""Where a gradient enters the model: what is scored of a picture that was sampled, and by which of the model's steps.

`Pairs` is Direct-Align's, of SRPO too; the others are those of the objectives in `baselines.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..seeds import derived_seed
from .noise_levels import Window, draw_position
from .step import Noised
from .ways import OneStep, Sampled, ThroughSteps, Traced, Way, down_from, to_the_end


class Route(Protocol):
    """All ways of an objective; equal ones share their forwards.

    traced: whether its samples must be `Traced`.
    """

    traced: bool

    def ways(self, sampled: Any, window: Window, pair: int) -> Iterator[Way]:
        """Those of pair number `pair` of an update; what is drawn for a sample follows from its seed and that."""


@dataclass(frozen=True)
class Pairs:
    """Direct-Align: the denoise and the inversion branch, at one noise level of the window."""

    traced = False

    def ways(self, sampled: Sampled, window: Window, pair: int) -> Iterator[OneStep]:
        branches = window.branches([draw_position(seed, pair) for seed in sampled.seeds])
        noised = Noised(sampled.x0, sampled.noise, branches, sampled.seeds)
        for branch in branches:
            yield OneStep(noised, branch)


@dataclass(frozen=True, kw_only=True)
class LateStep:
    """The clean latent that the model predicts in one step from a late state of the rollout: `x - sigma v`.

    last: the step is drawn from so many last ones.
    """

    last: int

    traced = True

    def __post_init__(self):
        check_integer("last_steps", self.last, 1)

    def ways(self, sampled: Traced, window: Window, pair: int) -> Iterator[OneStep]:
        trajectory = sampled.trajectory
        check_steps("last_steps", self.last, trajectory.steps)
        draws = [generator_of("late step", seed, pair) for seed in sampled.seeds]
        back = torch.stack([torch.randint(1, self.last + 1, (), generator=draw) for draw in draws])
        step = trajectory.steps - back
        yield to_the_end(trajectory.state(step), trajectory.sigmas[step], sampled)


@dataclass(frozen=True, kw_only=True)
class LastStepAgain:
    """The last step of the sampler, from the clean latent with new noise.

    noises: how many of them; their gradients are averaged.
    """

    noises: int

    traced = True

    def __post_init__(self):
        check_integer("noises", self.noises, 1)

    def ways(self, sampled: Traced, window: Window, pair: int) -> Iterator[OneStep]:
        sigma = sampled.trajectory.sigmas[-2].expand(len(sampled.seeds))
        branch = down_from(sigma)
        for number in range(self.noises):
            draws = [generator_of("last step", seed, pair, number) for seed in sampled.seeds]
            noise = torch.stack([torch.randn(sampled.x0.shape[1:], generator=draw) for draw in draws])
            noised = Noised(sampled.x0, noise.to(sampled.x0), (branch, branch), sampled.seeds)
            yield OneStep(noised, branch, share=1 / self.noises)


@dataclass(frozen=True, kw_only=True)
class LastSteps:
    """The rollout itself, back through its last steps. steps: how many."""

    steps: int

    traced = True

    def __post_init__(self):
        check_integer("steps", self.steps, 1)

    def ways(self, sampled: Traced, window: Window, pair: int) -> Iterator[ThroughSteps]:
        trajectory = sampled.trajectory
        check_steps("steps", self.steps, trajectory.steps)
        count = len(sampled.seeds)
        last = torch.arange(trajectory.steps - self.steps, trajectory.steps).expand(count, -1)
        coupling = torch.ones(last.shape)
        yield ThroughSteps(trajectory, sampled.seeds, chosen=last, coupling=coupling, scale=torch.ones(count))


@dataclass(frozen=True, kw_only=True)
class SparseSteps:
    """The rollout itself, back through a few of its steps, drawn with a leaning to the late ones.

    A step is drawn with a weight that grows as its number to the power of `late_bias`. With a coupling, one more draw
    splits the rollout; the first step behind the split is among the few, and so is one before it, and `coupling` of
    the gradient at that step's input reaches the steps before. What the few lack of the whole way in sigma, their
    gradient is scaled up by.
    Raises ValueError for less than 1 step, or 2 with a coupling, and for a coupling outside of [0, 1].
    """

    steps: int
    late_bias: float
    coupling: float

    traced = True

    def __post_init__(self):
        check_number("coupling", self.coupling, 0.0, 1.0)
        check_number("late_bias", self.late_bias, 0.0)
        check_integer("steps", self.steps, 2 if self.coupling else 1)

    def ways(self, sampled: Traced, window: Window, pair: int) -> Iterator[ThroughSteps]:
        trajectory = sampled.trajectory
        check_steps("steps", self.steps, trajectory.steps)
        draws = [self._draw(trajectory.steps, generator_of("steps", seed, pair)) for seed in sampled.seeds]
        chosen, coupling = map(torch.stack, zip(*draws))
        scale = trajectory.widths.sum() / trajectory.widths[chosen].sum(1)
        yield ThroughSteps(trajectory, sampled.seeds, chosen=chosen, coupling=coupling, scale=scale)

    def _draw(self, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The chosen steps of one sample, in order, and the coupling at each: (K,) both."""
        if not self.coupling:
            chosen = self._chosen(range(steps), self.steps, generator)
            return chosen, torch.zeros(self.steps)
        split = int(torch.randint(1, steps, (), generator=generator))
        before = min(max(round(self.steps * split / steps), 1, self.steps - (steps - split)), split, self.steps - 1)
        behind = self._chosen(range(split + 1, steps), self.steps - before - 1, generator)
        chosen = torch.cat([self._chosen(range(split), before, generator), torch.tensor([split]), behind])
        return chosen, torch.where(chosen == split, self.coupling, 0.0)

    def _chosen(self, among: range, count: int, generator: torch.Generator) -> Tensor:
        if not count:
            return torch.empty(0, dtype=torch.int64)
        weights = torch.tensor([(step + 1.0) ** self.late_bias for step in among], dtype=torch.float64)
        return among.start + torch.multinomial(weights, count, generator=generator).sort().values


def generator_of(what: str, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(what, *numbers))


def check_steps(name: str, count: int, steps: int):
    """Raises ValueError for more steps than a rollout has."""
    if count > steps:
        raise ValueError(f"{name} is {count}, and a rollout has {steps} steps: set it to {steps} at most.")
