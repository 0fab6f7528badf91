"""The hacking watch: how far a run has gone from where it began, against limits that the user sets."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..algorithm.terms import Spread
from ..checks import check_number
from ..language import say

COMPARED_UPDATES = 4  # the means of so many, the first and the last ones, are compared
CERTAINTY = 2  # a difference of less than so many of its standard errors is the scatter of few pictures


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far is too far; 0 sets no limit.

    words_gap: its rise, in the reward's units. saturation: its rise, as a share of what it was, so 0.1 is 10 %.
    watching: the fall of a watching reward's answers to the positive texts, in its standard deviations.
    velocity: the rise of the velocity's norm over the frozen model's, as a share.
    Raises ValueError for what is no finite number of at least 0.
    """

    words_gap: float = 0.0
    saturation: float = 0.0
    watching: float = 0.0
    velocity: float = 0.0

    def __post_init__(self):
        for name, limit in asdict(self).items():
            check_number(f"{name}_limit", limit, 0)


def crossed(
    history: list[dict[str, float]], limits: Limits, watching: list[str], spreads: Mapping[str, Spread]
) -> dict[str, str]:
    """What is beyond its limit and beyond the scatter, each with a sentence; empty until there are two windows.

    watching: the names of the rewards that only watch.
    """
    if len(history) < 2 * COMPARED_UPDATES:
        return {}
    found = {}
    gap = change(history, "words_gap")
    if limits.words_gap and gap.exceeds(limits.words_gap):
        found["words_gap"] = say(
            "the words-gap has risen by {rise:.3g} (limit {limit:g})", rise=gap.rise, limit=limits.words_gap
        )
    for key, limit in (("saturation", limits.saturation), ("velocity_ratio", limits.velocity)):
        share = change(history, key)
        if limit and share.exceeds(limit * share.before):
            found[key] = _risen(key, share.rise / share.before, limit)
    for name in watching if limits.watching else ():
        deviation = spreads.get(name, Spread()).std
        answer = change(history, f"reward_positive/{name}")
        if answer.falls_below(limits.watching * deviation):
            found[name] = say(
                'the watching reward "{name}" has fallen by {fall:.2g} deviations (limit {limit:g})',
                name=name,
                fall=-answer.rise / deviation,
                limit=limits.watching,
            )
    return found


def _risen(key: str, rise: float, limit: float) -> str:
    """The sentence about saturation or the velocity's norm, by shares of what they were."""
    if key == "saturation":
        return say("saturation has risen by {rise:.0%} (limit {limit:.0%})", rise=rise, limit=limit)
    return say("the velocity norm has risen by {rise:.0%} (limit {limit:.0%})", rise=rise, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Change:
    """From the first window of updates to the last: the mean before, its rise, and the standard error of that.

    All are NaN where a window has nothing finite, and then nothing is exceeded.
    """

    before: float
    rise: float
    error: float

    def exceeds(self, limit: float) -> bool:
        return self.rise > max(limit, CERTAINTY * self.error)

    def falls_below(self, limit: float) -> bool:
        return -self.rise > max(limit, CERTAINTY * self.error)


def change(history: list[dict[str, float]], key: str) -> Change:
    """How a number of the metrics has changed between the first and the last COMPARED_UPDATES."""
    first, last = (finite(part, key) for part in (history[:COMPARED_UPDATES], history[-COMPARED_UPDATES:]))
    before = mean(first)
    return Change(before=before, rise=mean(last) - before, error=math.hypot(*map(standard_error, (first, last))))


def finite(history: list[dict[str, float]], key: str) -> list[float]:
    return [value for metrics in history if math.isfinite(value := metrics.get(key, math.nan))]


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def standard_error(values: list[float]) -> float:
    """Of the mean of these values; 0 where there are too few to tell."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def window_mean(history: list[dict[str, float]], key: str) -> float:
    return mean(finite(history, key))
