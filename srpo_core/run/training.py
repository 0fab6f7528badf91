"""What a run trains on and with."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..algorithm.guard import NO_GUARD, Guard
from ..algorithm.noise_levels import Window
from ..algorithm.protocols import Dataset, Decoder, FlowModel, PhotoDataset, TrainingObjective
from ..algorithm.terms import Term
from .draws import Batching, Draw, cond_of


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run trains on and with, whole.

    flow: the model with the run's adapter. decoder: what the rewards see through. terms: the rewards, one or more.
    dataset: prompts, or photos alone. batching: what each update gathers of it. window: the trained noise levels.
    photos: stand in for a part of the prompts, `batching.photo_share`. guard: what holds the velocity.
    Raises ValueError for photos, or rollouts that serve several updates, where a reward trains through the sampler.
    """

    flow: FlowModel
    decoder: Decoder
    terms: Sequence[Term]
    dataset: Dataset
    batching: Batching
    window: Window = Window()
    photos: PhotoDataset | None = None
    guard: Guard = NO_GUARD
    _examples: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not self.traced:
            return
        method = " and ".join(type(objective).__name__ for objective in self.traced)
        if self.photos or isinstance(self.dataset, PhotoDataset):
            raise ValueError(
                f"{method} trains through the steps of a rollout, which photos have not: give it prompts, or train on "
                "them by SRPO."
            )
        if self.batching.reuse > 1:
            raise ValueError(
                f"reuse is {self.batching.reuse}, and {method} trains through the steps of a rollout, which the model "
                "would take otherwise once it has learned: set reuse to 1 on SRPO Rollouts."
            )

    @property
    def traced(self) -> list[TrainingObjective]:
        """The objectives that need the trajectory of a rollout."""
        return [term.objective for term in self.terms if term.trains and term.objective.route.traced]

    def example_of(self, draw: Draw) -> Any:
        """The conditioning of a draw like this one, of the same dataset and shape: the first of each is read."""
        kind = (id(draw.data), draw.data.cond_shape(draw.index))
        if kind not in self._examples:
            self._examples[kind] = cond_of([draw])
        return self._examples[kind]
