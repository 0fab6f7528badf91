"""Fixed-seed samples that a run shows of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..srpo_core.algorithm.protocols import Dataset
from ..srpo_core.seeds import FIRST_RESERVED

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.samples import FixedSamples
    from .open_run import OpenRun

LARGEST_SEED = 2**64 - 1


def parse_seeds(text: str) -> list[int]:
    """Seeds as people type them, separated by commas, spaces or lines. Raises ValueError for anything else."""
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) <= LARGEST_SEED)]
    if wrong:
        raise ValueError(
            f'preview_seeds holds "{wrong[0]}": write whole numbers from 0 to {LARGEST_SEED}, for example 1, 2, 3.'
        )
    return [int(word) for word in words]


def previewed(dataset: Dataset, count: int) -> list[int]:
    """Which prompts of the dataset `count` previews show: the first, taken around again where there are fewer."""
    return [i % len(dataset.prompts) for i in range(count)]


def seeds_of(typed: Sequence[int], count: int) -> list[int]:
    """The seeds of `count` previews: the typed ones, taken around again where there are fewer.

    Where there are none, previews begin from noise that training never draws; one that is typed may be among
    training's, and repeats another from 2**32 on (see seeds.py).
    """
    seeds = typed or range(FIRST_RESERVED, FIRST_RESERVED + count)
    return [seeds[i % len(seeds)] for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Which samples a run shows of itself. vae: decodes them. every: updates between two pictures on the node."""

    samples: FixedSamples
    vae: VAE
    every: int = 5


class Previews:
    """Samples before training, and as the run is now: each (count, H, W, 3) in [0, 1], on the CPU.

    Those of now are of the run's moving average, if it has one.
    """

    def __init__(self, opened: OpenRun, settings: PreviewSettings):
        samples = settings.samples
        samples.dataset.prepare(samples.indices)
        self.opened = opened
        self.settings = settings
        self.before = self._sample(opened.base)

    def now(self) -> torch.Tensor:
        with self.opened.run.averaged():
            return self._sample(self.opened.model)

    def _sample(self, model: ModelPatcher) -> torch.Tensor:
        from .host.samples import decode

        return decode(self.settings.vae, self.settings.samples.sample(model))
