"""The hacking watch: how far a run has gone from where it began, against limits that the user sets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..algorithm.terms import Spread
from ..checks import check_number

COMPARED_UPDATES = 4  # the means of so many, the first and the last ones, are compared


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
    """What is beyond its limit, each with a sentence; empty until there are two windows of updates.

    watching: the names of the rewards that only watch.
    """
    if len(history) < 2 * COMPARED_UPDATES:
        return {}
    found = {}
    gap, _ = change(history, "words_gap")
    if limits.words_gap and gap > limits.words_gap:
        found["words_gap"] = f"the words-gap has risen by {gap:.3g} (limit {limits.words_gap:g})"
    shares = (("saturation", "saturation", limits.saturation), ("velocity_ratio", "the velocity norm", limits.velocity))
    for key, what, limit in shares:
        rise, before = change(history, key)
        if limit and rise > limit * before:
            found[key] = f"{what} has risen by {rise / before:.0%} (limit {limit:.0%})"
    for name in watching if limits.watching else ():
        fall = -change(history, f"reward_positive/{name}")[0] / spreads.get(name, Spread()).std
        if fall > limits.watching:
            found[name] = (
                f'the watching reward "{name}" has fallen by {fall:.2g} deviations (limit {limits.watching:g})'
            )
    return found


def change(history: list[dict[str, float]], key: str) -> tuple[float, float]:
    """The mean of the last COMPARED_UPDATES minus that of the first, and that of the first; NaN where there is none."""
    first, last = (window_mean(part, key) for part in (history[:COMPARED_UPDATES], history[-COMPARED_UPDATES:]))
    return last - first, first


def window_mean(history: list[dict[str, float]], key: str) -> float:
    values = [value for metrics in history if math.isfinite(value := metrics.get(key, math.nan))]
    return sum(values) / len(values) if values else math.nan
