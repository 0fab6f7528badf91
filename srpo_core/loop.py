"""The loop: which prompts, noise and noise levels each update of a run takes, and what it makes of them."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from .events import events
from .models import Decoder, FlowModel
from .run import Run
from .schedule import Window, draw_position
from .step import Noised, Score, one_step_recover, score_recovered
from .terms import Term


class Dataset(Protocol):
    """Prompts and what the flow model needs of each.

    One of photos also has `shape(index)`, (C, H, W), and `latents(indices)`, (B, C, H, W), the photos as x0.
    """

    prompts: list[str]

    def cond(self, indices: list[int]) -> Any:
        """The conditioning of these prompts as one batch."""


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


@dataclass(frozen=True)
class Schedule:
    """What one update gathers: `batch` prompts, `at_once` of them in one forward; latents of `shape` (C, H, W).

    pairs: of branches that one rollout serves, each at a noise level of its own; 1 as published.
    """

    shape: tuple[int, int, int]
    batch: int = 1
    at_once: int = 1
    seed: int = 0
    pairs: int = 1


def sample_scores(
    run: Run,
    flow: FlowModel,
    decoder: Decoder,
    terms: Sequence[Term],
    window: Window,
    dataset: Dataset,
    schedule: Schedule,
) -> Iterator[Score]:
    """The scores of the run's next update, each computed when it is asked for.

    Photos stand in for rollouts (offline). Those that share a forward are of one shape; each sample keeps the noise
    and the noise level of its number, so how many share one changes nothing.
    """
    photos = hasattr(dataset, "latents")
    shape = dataset.shape if photos else lambda _: schedule.shape
    first = run.updates * schedule.batch
    numbers = range(first, first + schedule.batch)
    draws = [(number, prompt_index(schedule.seed, number, len(dataset.prompts))) for number in numbers]
    for group in of_one_shape(draws, shape, schedule.at_once):
        numbers, indices = map(list, zip(*group))
        prompts, cond = [dataset.prompts[i] for i in indices], dataset.cond(indices)
        seeds = [(schedule.seed + number) % 2**64 for number in numbers]
        noise = draw_noise(seeds, shape(indices[0]))
        x0 = dataset.latents(indices) if photos else flow.rollout(noise, cond, seeds[0])
        for pair in range(schedule.pairs):
            noised = Noised(x0, noise, window.branches([draw_position(seed, pair) for seed in seeds]))
            for branch in noised.branches:
                asked = [term for term in terms if term.objective.trains(branch)]
                if any(term.weight for term in asked):
                    recovered = one_step_recover(flow, cond, noised, branch)
                    yield score_recovered(recovered, branch, decoder, asked, prompts, run.updates + 1, run.spreads)


def of_one_shape(draws: Sequence[tuple[int, int]], shape: Callable[[int], Any], at_most: int) -> list[list[tuple]]:
    """The draws (number, index) of an update, in groups of one shape and at most `at_most`, which share a forward.

    Keeps the order within a shape; where all shapes are the same, the order of all.
    """
    by_shape: dict[Any, list[tuple]] = {}
    for draw in draws:
        by_shape.setdefault(shape(draw[1]), []).append(draw)
    return [same[i : i + at_most] for same in by_shape.values() for i in range(0, len(same), at_most)]


def prepare(run: Run, updates: int, terms: Sequence[Term], dataset: Dataset, schedule: Schedule):
    """Tell the rewards which texts the next `updates` updates will ask, so that they encode them all at once."""
    for term in terms:
        if hasattr(term.reward, "prepare"):
            texts = []
            for update in range(run.updates, run.updates + updates):
                numbers = range(update * schedule.batch, (update + 1) * schedule.batch)
                prompts = [dataset.prompts[prompt_index(schedule.seed, n, len(dataset.prompts))] for n in numbers]
                texts += [text for side in term.objective.texts(prompts, update + 1) for text in side]
            term.reward.prepare(list(dict.fromkeys(texts)))


def train(
    run: Run,
    updates: int,
    schedule: Schedule,
    terms: Sequence[Term],
    dataset: Dataset,
    on_update: Callable[[dict], Any] = lambda _: None,
    **world,
):
    """Make `updates` more updates; `world` is what else `sample_scores` asks for.

    on_update: called with the metrics of each; what is true ends the loop.
    The state of the last finished update is saved, whatever ends the loop.
    """
    prepare(run, updates, terms, dataset, schedule)
    try:
        with events(run.folder / "events", run.updates) as write:
            for _ in range(updates):
                scores = sample_scores(run, terms=terms, dataset=dataset, schedule=schedule, **world)
                metrics = run.update(scores, schedule.batch * schedule.pairs)
                write(metrics)
                if on_update(metrics):
                    break
    finally:
        run.save()
