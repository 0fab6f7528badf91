"""What a run trains on and with."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..algorithm.guard import NO_GUARD, Guard
from ..algorithm.noise_levels import Window
from ..algorithm.protocols import Dataset, Decoder, FlowModel
from ..algorithm.terms import Term
from .draws import Batching


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run trains on and with, whole.

    flow: the model with the run's adapter. decoder: what the rewards see through. terms: the rewards, one or more.
    dataset: prompts, or photos alone. batching: what each update gathers of it. window: the trained noise levels.
    photos: stand in for a part of the prompts, `batching.photo_share`. guard: what holds the velocity.
    """

    flow: FlowModel
    decoder: Decoder
    terms: Sequence[Term]
    dataset: Dataset
    batching: Batching
    window: Window = Window()
    photos: Dataset | None = None
    guard: Guard = NO_GUARD
