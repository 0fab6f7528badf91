"""How a run steps, saves and averages: what may change between two of its updates."""

from dataclasses import dataclass

from ..checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run steps. Defaults as published, but for the learning rate, which is a LoRA's.

    warmup, cosine_to: see learning_rate_factor. ema: decay of the parameters' moving average; 0 keeps none.
    snapshot_every: updates between two snapshots, 0 for none; the last `keep_snapshots` and the best one are kept.
    Raises ValueError, a sentence, for what is no finite number in its range.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    max_gradient_norm: float = 0.1
    save_every: int = 5  # updates between two saved states
    optimizer: str = "AdamW"
    warmup: int = 0  # updates
    cosine_to: int = 0  # the update after which the learning rate is 0; 0: constant
    ema: float = 0.0
    snapshot_every: int = 0
    keep_snapshots: int = 3

    def __post_init__(self):
        check_number("learning_rate", self.learning_rate, 0.0, 1.0)
        check_number("weight_decay", self.weight_decay, 0.0, 1.0)
        check_number("max_gradient_norm", self.max_gradient_norm, 1e-6)
        check_number("ema", self.ema, 0.0, 0.9999)
        for name in ("save_every", "keep_snapshots"):
            check_integer(name, getattr(self, name), 1)
        for name in ("warmup", "cosine_to", "snapshot_every"):
            check_integer(name, getattr(self, name), 0)


DEFAULT = Settings()
