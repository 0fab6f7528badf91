"""How numbers of one unit are shown together: with as many decimals as tell them apart, and on one scale."""

import math

from torch import Tensor


def digits_for(values: Tensor) -> int:
    """Decimals that tell these values apart: three digits of their spread, or of the value where all are one."""
    finite = values[values.isfinite()].double()
    if not len(finite):
        return 0
    scale = (finite.max() - finite.min()).item() or finite[0].abs().item() / 10 or 1.0
    return min(max(2 - math.floor(math.log10(scale)), 0), 6)


def number(value: float, digits: int, sign: str = "") -> str:
    """The value with this many decimals, or short where it is large. sign: "+" shows that of positive ones, too."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}"
    return f"{value:{sign}.{digits}f}" if abs(value) < 1e5 else f"{value:{sign}.4g}"


class Scale:
    """The scale from the lowest to the highest finite value of these. digits: see `digits_for`."""

    def __init__(self, values: Tensor):
        finite = values[values.isfinite()]
        self.low = finite.min().item() if len(finite) else 0.0
        self.high = finite.max().item() if len(finite) else 0.0
        self.digits = digits_for(values)

    def place(self, value: float, alone: float) -> float:
        """Where a value lies: 0 at the lowest, 1 at the highest, `alone` where all are one; NaN if it is not finite."""
        if not math.isfinite(value):
            return math.nan
        return (value - self.low) / (self.high - self.low) if self.high > self.low else alone
