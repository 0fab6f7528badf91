"""What each update of a run draws: prompts and photos, the seeds of their noise, and how they share a forward."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..algorithm.protocols import Dataset, PhotoDataset, Shape
from ..checks import check_integer, check_number
from ..seeds import derived_seed


def draw_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normal: each sample what ComfyUI's RandomNoise draws for its seed."""
    return torch.cat([torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def prompt_index(seed: int, number: int, prompts: int) -> int:
    """Which prompt draw `number` (from 0) uses: each once per round, every round in another order."""
    return round_order(seed, number // prompts, prompts)[number % prompts]


@lru_cache(maxsize=4)
def round_order(seed: int, number: int, prompts: int) -> list[int]:
    order = list(range(prompts))
    random.Random(f"{seed} {number}").shuffle(order)
    return order


@dataclass(frozen=True, kw_only=True)
class Batching:
    """What one update gathers: `batch` prompts, `at_once` of them in one forward; latents of `shape` (C, H, W).

    sampled_at_once: how many are rolled out together; `at_once` of them if that is more.
    pairs: how many pairs of branches one rollout serves, each at a noise level of its own; 1 as published.
    reuse: updates that the same prompts and their rollouts serve, at ever new noise levels; 1 as published.
    photo_share: the share of the prompts that are photos instead, where there are both; spread evenly.
    shared_noise: all prompts of an update take one noise, as published, in place of each its own.
    Raises ValueError, a sentence, for what is no number in its range.
    """

    shape: Shape
    batch: int = 1
    at_once: int = 1
    seed: int = 0
    pairs: int = 1
    reuse: int = 1
    photo_share: float = 0.0
    shared_noise: bool = False
    sampled_at_once: int = 1

    def __post_init__(self):
        for name in ("batch", "at_once", "pairs", "reuse"):
            check_integer(name, getattr(self, name), 1)
        for side in self.shape:
            check_integer("a side of the latent", side, 1)
        check_integer("sampled_at_once", self.sampled_at_once, 0)
        check_integer("seed", self.seed, 0, 2**64 - 1)
        check_number("photo_share", self.photo_share, 0.0, 1.0)


@dataclass(frozen=True)
class Draw:
    """One prompt, or photo, of an update: entry `index` of its dataset.

    number: which draw of the run it is, from 0; noise and noise level follow from it.
    """

    number: int
    data: Dataset
    index: int

    @property
    def prompt(self) -> str:
        return self.data.prompts[self.index]


def draws_of(made: int, batching: Batching, dataset: Dataset, photos: PhotoDataset | None = None) -> list[Draw]:
    """What the update after `made` others takes: each prompt once per round, and each photo once per round of them."""
    first = made // batching.reuse * batching.batch
    draws = []
    for number in range(first, first + batching.batch):
        photos_before = math.floor(number * batching.photo_share) if photos else 0
        if photos and math.floor((number + 1) * batching.photo_share) > photos_before:
            index = prompt_index(derived_seed("photos", batching.seed), photos_before, len(photos.prompts))
            draws.append(Draw(number, photos, index))
        else:
            index = prompt_index(batching.seed, number - photos_before, len(dataset.prompts))
            draws.append(Draw(number, dataset, index))
    return draws


def noise_seed(batching: Batching, draw: Draw) -> int:
    """The seed of the draw's noise; where all of an update share one noise, of its first draw's."""
    return draw_seed(batching, draw.number - (draw.number % batching.batch if batching.shared_noise else 0))


def draw_seed(batching: Batching, number: int) -> int:
    """The seed of a draw's own noise and all else that is drawn for it: with the pair's number, its noise level.

    Runs of other seeds share none. As RandomNoise's noise_seed it gives the same noise.
    """
    return derived_seed("draw", batching.seed, number)


def cond_of(draws: list[Draw]) -> Any:
    """The conditioning of draws of one dataset and shape, as one batch."""
    return draws[0].data.cond([draw.index for draw in draws])


def shape_of(draw: Draw, batching: Batching) -> Shape:
    """That of its latent."""
    return draw.data.shape(draw.index) if isinstance(draw.data, PhotoDataset) else batching.shape


def of_one_shape(draws: Sequence[Draw], batching: Batching) -> list[list[Draw]]:
    """The draws of an update in groups that are sampled together: of one dataset and shapes, and not too many.

    Keeps the order within a group; where all are of one shape, the order of all.
    """
    alike: dict[Any, list[Draw]] = {}
    for draw in draws:
        shapes = shape_of(draw, batching), draw.data.cond_shape(draw.index)
        alike.setdefault((id(draw.data), *shapes), []).append(draw)
    most = max(batching.at_once, batching.sampled_at_once)
    return [same[i : i + most] for same in alike.values() for i in range(0, len(same), most)]
