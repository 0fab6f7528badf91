"""Several rewards in one update: what each is asked, how much it counts, and on which scale."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..checks import check_number
from ..rewards import Reward
from .protocols import TrainingObjective

NONE_TRAINS = "Every reward has the weight 0, so all watch and none trains: give one of them a weight."


@dataclass
class Spread:
    """Running mean and standard deviation (Welford) of all finite numbers that a reward has answered in a run.

    A reward that only watches may answer what is no number: with that in it the spread were none for ever.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances to the mean

    def add(self, values: Tensor):
        for value in filter(math.isfinite, values.flatten().tolist()):
            self.count += 1
            distance = value - self.mean
            self.mean += distance / self.count
            self.squares += distance * (value - self.mean)

    @property
    def std(self) -> float:
        """1 where there is nothing to divide by yet."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Term:
    """One reward of an update.

    weight: factor of its loss; at 0 it only watches: it is asked and logged, and trains nothing.
    name: tells its metrics from those of the others; the first has none.
    normalised: its loss is divided by the spread of its answers in the run so far, to both words, so that equal
    weights mean equal influence, whatever the rewards' units.
    Raises ValueError for a weight that is no finite number of at least 0.
    """

    reward: Reward
    objective: TrainingObjective
    weight: float = 1.0
    name: str = ""
    normalised: bool = False

    def __post_init__(self):
        check_number("weight", self.weight, 0)

    @property
    def trains(self) -> bool:
        return self.weight != 0

    def factor(self, spreads: Mapping[str, Spread]) -> float:
        """The factor of its loss, given what the rewards have answered so far."""
        return self.weight / spreads[self.name].std if self.normalised and self.trains else self.weight


@dataclass(frozen=True)
class Answer:
    """The answer of one reward to a batch: (B,) rewards with either word, and its loss before weighing, (B,)."""

    name: str
    positive: Tensor
    negative: Tensor
    loss: Tensor

    def add_to(self, spread: Spread):
        spread.add(self.positive)
        spread.add(self.negative)


def combine(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms of one update; where several train, each is normalised.

    Raises ValueError when two share a name, or when none of them trains.
    """
    names = [term.name for term in terms]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f'Two rewards are called "{twice.pop()}": give each a name of its own, at name on Add Reward. The one at '
            'SRPO Train itself is called "".'
        )
    training = sum(term.trains for term in terms)
    if not training:
        raise ValueError(NONE_TRAINS)
    return tuple(replace(term, normalised=training > 1) for term in terms)
