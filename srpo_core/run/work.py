"""How much work a training is, for a bar that moves while pictures are sampled: pictures times steps of a sampler."""

from dataclasses import dataclass
from typing import Any

from ..algorithm.protocols import PhotoDataset
from .training import Training


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """The work of a training of `updates` updates, after `first` others.

    each: of an update. samples: of the samples that are shown, before training, after every `every`-th update and at
    the end.
    """

    first: int
    updates: int
    each: int
    samples: int
    every: int

    def is_due(self, made: int) -> bool:
        """Whether samples are shown after so many updates, before the end."""
        return made < self.updates and (self.first + made) % self.every == 0

    def until(self, made: int) -> int:
        """The work until so many updates are made, with the samples that follow the last of them."""
        shown = 1 + (self.first + made) // self.every - self.first // self.every
        if made == self.updates:
            shown += (self.first + made) % self.every != 0
        return self.samples * shown + self.each * made


def work_of(training: Training, steps: int) -> int:
    """The work of an update, estimated: steps of the sampler for each picture, and one for each trained forward."""
    return max(1, round(sampled_steps(training, steps) + trained_forwards(training)))


def forward_equivalents(training: Training, steps: int) -> float:
    """What an update costs in forwards of one picture: a trained one counts as three, with its backward."""
    return sampled_steps(training, steps) + 3 * trained_forwards(training)


def sampled_steps(training: Training, steps: int) -> float:
    """All pictures of an update times the steps of their rollouts; those of photos are none."""
    batching = training.batching
    photo_share = 1.0 if isinstance(training.dataset, PhotoDataset) else batching.photo_share
    return batching.batch * (1 - photo_share) * steps / batching.reuse


def trained_forwards(training: Training) -> int:
    """Of an update; objectives whose gradient takes the same route share theirs."""
    batching = training.batching
    by_route: dict[Any, int] = {}
    for term in training.terms:
        if term.trains:
            route = term.objective.route
            by_route[route] = max(by_route.get(route, 0), term.objective.forwards)
    return batching.batch * batching.pairs * sum(by_route.values())
