"""SRPO_Mix: prompts and photos in one dataset."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..srpo_core.algorithm.protocols import Dataset, PhotoDataset
from .checked import checked
from .sockets import CATEGORY, DatasetType


@dataclass(frozen=True)
class Mix:
    """Prompts of which a run takes a share from photos instead; to all else it is the dataset of its prompts."""

    of_prompts: Dataset
    photos: PhotoDataset
    photo_share: float

    @property
    def prompts(self) -> list[str]:
        return self.of_prompts.prompts

    def content(self) -> Sequence[Any]:
        return self.of_prompts.content()

    def prepare(self, indices: list[int]):
        self.of_prompts.prepare(indices)

    def cond(self, indices: list[int]) -> Any:
        return self.of_prompts.cond(indices)

    def cond_shape(self, index: int) -> Hashable:
        return self.of_prompts.cond_shape(index)


class MixNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Mix",
            display_name="SRPO Mix",
            category=CATEGORY,
            description="Trains on photos beside prompts: a share of each batch begins from photos, the rest from the "
            "model's own pictures.",
            search_aliases=["combine datasets", "photos and prompts", "mix", "srpo"],
            inputs=[
                DatasetType.Input("prompts", tooltip="The dataset of SRPO Prompts."),
                DatasetType.Input("photos", tooltip="The dataset of SRPO Photos."),
                io.Float.Input(
                    "photo_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of each batch is photos instead of prompts.",
                ),
            ],
            outputs=[DatasetType.Output(display_name="dataset", tooltip="The prompts and photos, for SRPO Train.")],
        )

    @classmethod
    @checked
    def execute(cls, prompts: Dataset, photos: Dataset, photo_share: float) -> io.NodeOutput:
        for name, dataset, wanted in (("prompts", prompts, False), ("photos", photos, True)):
            if isinstance(dataset, Mix):
                raise ValueError(f"{name} is a mix already: connect SRPO Prompts and SRPO Photos themselves.")
            if isinstance(dataset, PhotoDataset) != wanted:
                there = "Prompts" if wanted else "Photos"
                right = "Photos" if wanted else "Prompts"
                raise ValueError(f"At {name} is the dataset of SRPO {there}: connect SRPO {right} there.")
        return io.NodeOutput(Mix(prompts, photos, photo_share))
