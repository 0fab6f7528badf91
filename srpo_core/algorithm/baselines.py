"""The objectives of other methods, which raise the plain reward `R(image, prompt)`: to compare SRPO with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_number
from .noise_levels import Branch
from .routes import LastStepAgain, LastSteps, LateStep, Pairs, SparseSteps


@dataclass(frozen=True, kw_only=True)
class PlainReward:
    """The reward of the prompt alone (see `protocols.TrainingObjective`), with no other word against it.

    threshold: rewards above it have no gradient, in the units of the reward.
    Raises ValueError for a threshold that is no finite number.
    """

    threshold: float = 0.7

    route: ClassVar[Any]

    def __post_init__(self):
        check_number("threshold", self.threshold)
        _ = self.route  # it checks its own numbers

    @property
    def forwards(self) -> int:
        return 1

    def trains(self, branch: Branch) -> bool:
        return branch.name == "denoise"

    def texts(self, prompts: list[str], update: int, seeds: Sequence[int] = ()) -> tuple[list[str], list[str]]:
        """The prompts, twice: there is no other side, and the words-gap is 0."""
        return prompts, prompts

    def loss(self, branch: Branch, positive: Tensor, negative: Tensor) -> Tensor:
        """(B,): the hinge `relu(threshold - R)` of each sample."""
        return torch.relu(self.threshold - positive)


@dataclass(frozen=True, kw_only=True)
class DirectAlign(PlainReward):
    """Direct-Align without SRPO: its denoise branch (arXiv 2509.06942, section 3.1)."""

    route = Pairs()


@dataclass(frozen=True, kw_only=True)
class ReFL(PlainReward):
    """Reward feedback learning: one-step prediction from a late state (arXiv 2304.05977, algorithm 1).

    last_steps: of a rollout, from which the step is drawn; 11 of 25 is usual for FLUX.1-dev (arXiv 2606.11075).
    """

    last_steps: int = 11

    @property
    def route(self) -> LateStep:
        return LateStep(last=self.last_steps)


@dataclass(frozen=True, kw_only=True)
class DRaFT(PlainReward):
    """DRaFT-K: back-propagation through the last K steps of the sampler (arXiv 2309.17400, section 4).

    steps: K.
    """

    steps: int = 1

    @property
    def route(self) -> LastSteps:
        return LastSteps(steps=self.steps)

    @property
    def forwards(self) -> int:
        return self.steps


@dataclass(frozen=True, kw_only=True)
class DRaFTLV(PlainReward):
    """DRaFT-LV: the last step, from several noises of the same picture (arXiv 2309.17400, section 4).

    noises: how many; 2 as published.
    """

    noises: int = 2

    @property
    def route(self) -> LastStepAgain:
        return LastStepAgain(noises=self.noises)

    @property
    def forwards(self) -> int:
        return self.noises


@dataclass(frozen=True, kw_only=True)
class FlowBP(PlainReward):
    """FlowBP: back-propagation through a sparse set of the sampler's steps (arXiv 2606.11075).

    The defaults are those of its Bridge for FLUX.1-dev; without a coupling it is its Sparse, published with 3 steps.
    See `routes.SparseSteps`; how much late steps are preferred by a bias of 2 is our reading.
    """

    steps: int = 5
    late_bias: float = 2.0
    coupling: float = 0.1

    @property
    def route(self) -> SparseSteps:
        return SparseSteps(steps=self.steps, late_bias=self.late_bias, coupling=self.coupling)

    @property
    def forwards(self) -> int:
        return self.steps
