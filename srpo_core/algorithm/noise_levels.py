"""Which noise levels an update trains: the window and its pairs of branches.

The window is a grid of `GRID` noise levels between two sigmas. A position in it, a branch's
`grid_index` too, counts from its low-noise end. A position `m` names one denoise branch and
one inversion branch that end at the same noise level (SRPO, arXiv 2509.06942, section 3).

A model that was distilled to few steps is asked at few levels. Where a window has `levels`, a position names one of
them, and both branches begin there, as wide as elsewhere.
"""

import random
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..checks import is_number, shown

GRID = 1000  # noise levels in the window
WIDTH = GRID // 10  # how far a branch reaches, in grid cells
MARGIN = 5  # positions closer than this to an end of the grid are not drawn

Time = TypeVar("Time", float, Tensor)


def shift(t: Time, a: float = 3.0) -> Time:
    """Sampler time `t` in [0, 1] to sigma, by the resolution shift `a` of FLUX."""
    return a * t / (1 + (a - 1) * t)


@dataclass(frozen=True)
class Branch:
    """One step of the model from `sigma_in` to `sigma_out`, for a batch of B samples.

    sigma_in, sigma_out: (B,) float64 in [0, 1).
    grid_index: (B,) int64 in [0, GRID): the position in the window that sets the strengths.
    """

    name: Literal["denoise", "inversion"]
    sigma_in: Tensor
    sigma_out: Tensor
    grid_index: Tensor

    @property
    def error_gain(self) -> Tensor:
        """(B,): how much of the model's error reaches the recovered image, |ds| / (1 - sigma_out)."""
        return (self.sigma_in - self.sigma_out).abs() / (1 - self.sigma_out)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The trained noise levels, `1 > sigma_max > sigma_min >= 0`.

    The default is the published window of the HPS run: steps 5 to 25 of 50 at shift 3.
    levels: the only ones that the model is asked at, each in (0, 1); none: those of the grid.
    Raises ValueError for an empty, reversed or too noisy window, and for what is no number.
    """

    sigma_max: float = shift(0.9)
    sigma_min: float = shift(0.5)
    levels: tuple[float, ...] = ()

    def __post_init__(self):
        for name, sigma in (("sigma_max", self.sigma_max), ("sigma_min", self.sigma_min)):
            if not is_number(sigma):
                raise ValueError(f"{name} is {shown(sigma)}: give a number from 0 to 1.")
        if not self.sigma_max < 1:
            raise ValueError(
                f"sigma_max is {shown(self.sigma_max)}, but the clean image can't be recovered from pure noise: "
                "choose a sigma_max below 1, for example 0.96."
            )
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(
                f"The noise window from sigma_max {shown(self.sigma_max)} down to sigma_min {shown(self.sigma_min)} is "
                "empty: choose 0 <= sigma_min < sigma_max, for example 0.75 and 0.96."
            )
        if not all(is_number(level) and 0 < level < 1 for level in self.levels):
            raise ValueError(f"The trained levels are {list(self.levels)}: give numbers between 0 and 1.")

    def grid(self) -> Tensor:
        """(GRID,) float64 from sigma_max down to sigma_min, so that position `m` is entry `GRID - m`."""
        return torch.linspace(self.sigma_max, self.sigma_min, GRID, dtype=torch.float64)

    def branches(self, positions: list[int]) -> tuple[Branch, Branch]:
        """The denoise and the inversion branch at each of B positions `m` in 1..GRID-1."""
        m = torch.tensor(positions)
        if not ((m >= 1) & (m < GRID)).all():
            raise ValueError(f"Positions in the noise window must lie in 1..{GRID - 1}, got {positions}.")
        if self.levels:
            levels = torch.tensor(sorted(self.levels), dtype=torch.float64)
            return self.steps_from(levels[(m - 1) * len(levels) // (GRID - 1)])
        grid = self.grid()
        k = torch.minimum(m, GRID - m).clamp(max=WIDTH)
        below = (m - k).clamp(min=1)
        denoise = Branch("denoise", grid[GRID - (m + k)], grid[GRID - m], m)
        inversion = Branch("inversion", grid[GRID - below], grid[GRID - (below + k)], below)
        return denoise, inversion

    def steps_from(self, sigma: Tensor) -> tuple[Branch, Branch]:
        """The denoise and the inversion branch that begin at sigmas (B,) in (0, 1), float64, in the window or not.

        They are a tenth of the window wide, but end at 0 at the latest, and halfway to pure noise. Outside the window
        the strengths at its ends count.
        """
        width = WIDTH * (self.sigma_max - self.sigma_min) / (GRID - 1)
        below = (sigma - width).clamp(min=0)
        above = torch.minimum(sigma + width, (1 + sigma) / 2)
        denoise = Branch("denoise", sigma, below, self._position(below))
        return denoise, Branch("inversion", sigma, above, self._position(sigma))

    def _position(self, sigma: Tensor) -> Tensor:
        """(B,) int64: that of the nearest noise level of the grid."""
        cell = (self.sigma_max - self.sigma_min) / (GRID - 1)
        return (1 + ((sigma - self.sigma_min) / cell).round()).long().clamp(1, GRID - 1)


def draw_position(seed: int, pair: int = 0) -> int:
    """A position in the window, uniform in MARGIN..GRID-MARGIN, the same for the same seed and pair of branches."""
    draw = random.Random(seed)
    return [draw.randint(MARGIN, GRID - MARGIN) for _ in range(pair + 1)][pair]
