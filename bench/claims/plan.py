"""Which trials each claim asks for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from srpo_core.algorithm.noise_levels import shift
from srpo_core.algorithm.objective import Strength

from .trial import METHODS, Setting

SEEDS = (0, 1, 2, 3, 4)
CHOOSING = (100, 101)  # on which settings were chosen; no table uses them
FARTHEST = 5.0  # times the budget
WINDOWS = {"early": (0.99, 0.9), "published": (shift(0.9), shift(0.5)), "all": (0.99, 0.05), "late": (0.5, 0.05)}
ONE = Strength(low_noise=1.0, high_noise=1.0)
NONE = Strength(low_noise=0.0, high_noise=0.0)
PARTS: dict[str, dict[str, Any]] = {
    "published": {},
    "without inversion": {"branches": "denoise"},
    "inversion alone": {"branches": "inversion"},
    "k = 0": {"denoise_strength": NONE, "inversion_strength": NONE},
    "k = 1 in the denoise branch": {"denoise_strength": ONE},
}
WISHES = {
    "photo": (("photo",), ("render",)),
    "render": (("render",), ("photo",)),
    "dark": (("dark",), ("bright",)),
    "bright": (("bright",), ("dark",)),
    "vivid": (("vivid",), ("muted",)),
    "muted": (("muted",), ("vivid",)),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A trial of a claim, called `name` there."""

    claim: str
    name: str
    setting: Setting


def entries() -> Iterator[Entry]:
    for seed in SEEDS:
        yield from methods(seed)
        for name, window in WINDOWS.items():
            yield Entry(claim="C3", name=name, setting=Setting(seed=seed, window=window))
        for name, fields in PARTS.items():
            yield Entry(claim="C4", name=name, setting=Setting(seed=seed, objective=tuple(fields.items())))
        for name, (positive, negative) in WISHES.items():
            fields = {"positive": positive, "negative": negative}
            yield Entry(claim="C6", name=name, setting=Setting(seed=seed, objective=tuple(fields.items())))


def methods(seed: int) -> Iterator[Entry]:
    """Every method, judged at its budget and on the way to five times that: C1, C2 and C8 read the same trials."""
    for method in METHODS:
        usual = Setting()
        far = replace(usual, method=method, seed=seed, budget=FARTHEST * usual.budget)
        yield Entry(claim="C1", name=method, setting=replace(far, checks=(0.1, 0.2, 0.4, 0.7, 1.0)))
