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

    from .host.flow_model import Sampling
    from .open_run import Trainer

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


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Which samples a run shows of itself, and how often.

    dataset: of which the first `count` prompts are shown. vae: decodes them. shape: (C, H, W) of latents, `at_once` in
    one forward. every: updates between two pictures on the node.
    seeds: of the samples, taken around again where there are fewer. Where there are none, they begin from noise that
    training never draws; one that is given may be among training's, and repeats another from 2**32 on (see seeds.py).
    """

    dataset: Dataset
    vae: VAE
    sampling: Sampling
    shape: tuple[int, int, int]
    at_once: int = 1
    count: int = 4
    every: int = 5
    seeds: Sequence[int] = ()


class Previews:
    """Samples before training, and as the run is now: each (count, H, W, 3) in [0, 1], on the CPU.

    Those of now are of the run's moving average, if it has one.
    """

    def __init__(self, trainer: Trainer, settings: PreviewSettings):
        from .host.samples import FixedSamples

        dataset = settings.dataset
        count = settings.count
        indices = previewed(dataset, count)
        dataset.prepare(indices)
        seeds = settings.seeds or range(FIRST_RESERVED, FIRST_RESERVED + count)
        self.samples = FixedSamples(
            dataset=dataset,
            sampling=settings.sampling,
            shape=settings.shape,
            indices=indices,
            seeds=[seeds[i % len(seeds)] for i in range(count)],
            at_once=settings.at_once,
        )
        self.trainer = trainer
        self.vae = settings.vae
        self.before = self._sample(trainer.base)

    def now(self) -> torch.Tensor:
        with self.trainer.run.averaged():
            return self._sample(self.trainer.model)

    def _sample(self, model: ModelPatcher) -> torch.Tensor:
        from .host.samples import decode

        return decode(self.vae, self.samples.sample(model))
