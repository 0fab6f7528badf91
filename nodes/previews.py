"""Fixed-seed samples that a run shows of itself."""

import torch

from ..srpo_core.run.draws import Batching
from ..srpo_core.seeds import FIRST_KEPT

FIRST_SEED = FIRST_KEPT  # where none is chosen, previews start from noise that training never draws
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


def shown(dataset, count: int) -> list[int]:
    """Which prompts of the dataset `count` previews show."""
    return [i % len(dataset.prompts) for i in range(count)]


class Previews:
    """Samples of the first `count` prompts, before training and now, each (count, H, W, 3) in [0, 1], on the CPU.

    Prompts, and the seeds if some are given, are taken around again where there are fewer. Those of now are of the
    run's moving average, if it has one.
    """

    def __init__(self, trainer, dataset, vae, sampling, batching: Batching, count: int, seeds: list[int]):
        from .host.samples import Plan

        indices = shown(dataset, count)
        dataset.prepare(indices)
        seeds = [seeds[i % len(seeds)] if seeds else FIRST_SEED + i for i in range(count)]
        self.plan = Plan(dataset, sampling, batching.shape, indices, seeds, batching.at_once)
        self.trainer = trainer
        self.vae = vae
        self.before = self._sample(trainer.base)

    def now(self) -> torch.Tensor:
        with self.trainer.run.averaged():
            return self._sample(self.trainer.model)

    def _sample(self, model) -> torch.Tensor:
        from .host.samples import decode

        return decode(self.vae, self.plan.sample(model))
