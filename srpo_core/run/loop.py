"""The loop: which prompts, noise and noise levels each update of a run takes, and what it makes of them."""

import logging
import math
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..algorithm.gradient_check import check_once
from ..algorithm.guard import NO_GUARD, Guard
from ..algorithm.noise_levels import GRID, Branch, Window, draw_position
from ..algorithm.protocols import Decoder, FlowModel
from ..algorithm.step import Compared, Noised, Score, first_answers, one_step_recover, score_recovered
from ..algorithm.terms import Spread, Term
from ..checks import check_number, check_whole
from ..digest import digest
from ..seeds import derived_seed
from .events import events
from .run import Run

log = logging.getLogger(__name__)

MOST_NAMED = 32  # seeds in a line of the log

MOST_AHEAD = 512  # draws that are encoded before they are needed: gigabytes of prompts for FLUX, and minutes


class Dataset(Protocol):
    """Prompts and what the flow model needs of each.

    One of photos also has `shape(index)`, (C, H, W), and `latents(indices)`, (B, C, H, W), the photos as x0.
    It may have `prepare(indices)`: hears, many at once, which of them will be asked soon, so that it can encode them.
    """

    prompts: list[str]

    def cond(self, indices: list[int]) -> Any:
        """The conditioning of these prompts as one batch; they have the same `cond_shape`."""

    def cond_shape(self, index: int) -> Hashable:
        """What conditionings have in common that can be one batch: for most models, the number of tokens."""


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
class Batching:
    """What one update gathers: `batch` prompts, `at_once` of them in one forward; latents of `shape` (C, H, W).

    sampled_at_once: how many are rolled out together; no fewer than `at_once`.
    pairs: of branches that one rollout serves, each at a noise level of its own; 1 as published.
    reuse: updates that the same prompts and their rollouts serve, at ever new noise levels; 1 as published.
    photo_share: of the prompts, how many are photos instead, where there are both; spread evenly.
    shared_noise: all prompts of an update take one noise, as published, in place of each its own.
    Raises ValueError, a sentence, for what is no number in its range.
    """

    shape: tuple[int, int, int]
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
            check_whole(name, getattr(self, name), 1)
        for side in self.shape:
            check_whole("a side of the latent", side, 1)
        check_whole("sampled_at_once", self.sampled_at_once, 0)
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_number("photo_share", self.photo_share, 0.0, 1.0)


class Draw(NamedTuple):
    """One prompt, or photo, of an update. number: of the draw, from 0 in a run; noise and level follow from it."""

    number: int
    data: Dataset
    index: int

    @property
    def is_photo(self) -> bool:
        return hasattr(self.data, "latents")


def draws_of(update: int, batching: Batching, dataset: Dataset, photos: Dataset | None = None) -> list[Draw]:
    """What update `update` (from 0) takes: each prompt once per round, and each photo once per round of photos."""
    first = update // batching.reuse * batching.batch
    draws = []
    for number in range(first, first + batching.batch):
        of_photos, then = (math.floor(n * batching.photo_share) if photos else 0 for n in (number, number + 1))
        if then > of_photos:
            index = prompt_index(derived_seed("photos", batching.seed), of_photos, len(photos.prompts))
            draws.append(Draw(number, photos, index))
        else:
            index = prompt_index(batching.seed, number - of_photos, len(dataset.prompts))
            draws.append(Draw(number, dataset, index))
    return draws


def sample_scores(
    run: Run,
    flow: FlowModel,
    decoder: Decoder,
    terms: Sequence[Term],
    window: Window,
    dataset: Dataset,
    batching: Batching,
    photos: Dataset | None = None,
    guard: Guard = NO_GUARD,
) -> Iterator[Score]:
    """The scores of the run's next update, each computed when it is asked for.

    Photos stand in for rollouts (offline). Those that share a forward are of one shape; each sample keeps the noise
    and the noise level of its number, so how many share one changes nothing. A guard compares all samples to the
    frozen model; without one the first alone is compared, to be seen. Rewards that are normalised, but have said
    nothing yet, are asked beforehand: the spread of all that they say in this update scales it.
    """
    age = run.updates % batching.reuse
    compare = True
    update = run.updates + 1
    if age == 0:
        run.rollouts = {}
    draws = draws_of(run.updates, batching, dataset, photos)
    check_gradients(run, flow, window, batching, draws)
    pairs = range(age * batching.pairs, (age + 1) * batching.pairs)
    groups = sampled(run, flow, batching, draws)
    spreads = run.spreads
    new = [t for t in terms if t.normalised and t.trains and t.name not in run.spreads]
    if new:
        groups = list(groups)
        spreads = spreads | first_spreads(flow, decoder, asked_of(new, window, batching, pairs, groups), update)
    for asked in asked_of(terms, window, batching, pairs, groups):
        group, prompts, cond, noised, branch, asks = asked
        first = Compared(1, group[0].data.cond([group[0].index])) if compare else None
        compared = Compared(len(group), cond) if guard else first
        compare = False
        recovered = one_step_recover(flow, cond, noised, branch, compared, guard)
        yield score_recovered(recovered, branch, decoder, asks, prompts, update, spreads)


class Asked(NamedTuple):
    """One forward of an update: the draws that share it, and the terms that are asked of the branch."""

    group: list[Draw]
    prompts: list[str]
    cond: Any
    noised: Noised
    branch: Branch
    terms: list[Term]


def asked_of(
    terms: Sequence[Term], window: Window, batching: Batching, pairs: range, groups: Iterable[tuple]
) -> Iterator[Asked]:
    """The forwards of an update: of each group, both branches of each pair, if a reward trains them."""
    for group, x0, noise in groups:
        data = group[0].data
        indices = [draw.index for draw in group]
        prompts = [data.prompts[i] for i in indices]
        cond = data.cond(indices)
        seeds = tuple(draw_seed(batching, draw.number) for draw in group)
        for pair in pairs:
            noised = Noised(x0, noise, window.branches([draw_position(seed, pair) for seed in seeds]), seeds)
            for branch in noised.branches:
                asks = [term for term in terms if term.objective.trains(branch)]
                if any(term.trains for term in asks):
                    yield Asked(group, prompts, cond, noised, branch, asks)


def first_spreads(flow: FlowModel, decoder: Decoder, forwards: Iterable[Asked], update: int) -> dict[str, Spread]:
    """Of all that the terms say in an update, before it: what they say of one sample alone has no spread."""
    spreads: dict[str, Spread] = {}
    for asked in forwards:
        recovered = one_step_recover(flow, asked.cond, asked.noised, asked.branch)
        for answer in first_answers(recovered, asked.branch, decoder, asked.terms, asked.prompts, update):
            answer.add_to(spreads.setdefault(answer.name, Spread()))
    return spreads


def check_gradients(run: Run, flow: FlowModel, window: Window, batching: Batching, draws: list[Draw]):
    """Raises RuntimeError, before anything is sampled, if a gradient is wrong. Each kind of draw is checked once."""
    sigma = window.branches([GRID // 2])[0].sigma_in
    for draw, *_ in of_one_shape(draws, batching):
        noise = draw_noise([noise_seed(batching, draw)], shape_of(draw, batching))
        check_once(run.checked, flow, noise, sigma, draw.data.cond([draw.index]))


def sampled(run: Run, flow: FlowModel, batching: Batching, draws: list[Draw]) -> Iterator[tuple]:
    """The draws in groups that share a trained forward, each with its x0 and its noise, (B, C, H, W)."""
    for together in of_one_shape(draws, batching):
        x0, noise = clean_latents(run, flow, batching, together)
        for start in range(0, len(together), batching.at_once):
            part = slice(start, start + batching.at_once)
            yield together[part], x0[part], noise[part]


def clean_latents(run: Run, flow: FlowModel, batching: Batching, group: list[Draw]) -> tuple[Tensor, Tensor]:
    """x0 (B, C, H, W): photos, or what the model makes of the noise; and the noise.

    Rollouts that serve several updates are kept by the run, also on disk, so that it resumes with the same.
    """
    data = group[0].data
    indices = [draw.index for draw in group]
    seeds = [noise_seed(batching, draw) for draw in group]
    noise = draw_noise(seeds, shape_of(group[0], batching))
    if group[0].is_photo:
        return data.latents(indices), noise
    if batching.reuse == 1:
        return rolled_out(flow, noise, data, indices, seeds), noise
    names = [digest([seed, batching.shape, data.prompts[i]]) for seed, i in zip(seeds, indices)]
    if not run.rollouts.keys() >= set(names):
        run.rollouts |= zip(names, rolled_out(flow, noise, data, indices, seeds).detach().cpu())
    return torch.stack([run.rollouts[name] for name in names]), noise


def rolled_out(flow: FlowModel, noise: Tensor, data: Dataset, indices: list[int], seeds: list[int]) -> Tensor:
    """x0 (B, C, H, W): together, but one by one where a picture would depend on those it is sampled with."""
    if not getattr(flow, "samples_depend_on_batch", False):
        return flow.rollout(noise, data.cond(indices), seeds[0])
    alone = zip(noise.split(1), indices, seeds)
    return torch.cat([flow.rollout(one, data.cond([index]), seed) for one, index, seed in alone])


def noise_seed(batching: Batching, draw: Draw) -> int:
    """Of the draw's noise; where all of an update share one, of its first draw's."""
    return draw_seed(batching, draw.number - (draw.number % batching.batch if batching.shared_noise else 0))


def draw_seed(batching: Batching, number: int) -> int:
    """Of a draw's own noise and all else that is drawn for it: with the pair's number, its noise level.

    Runs of other seeds share none. As RandomNoise's noise_seed it gives the same noise.
    """
    return derived_seed("draw", batching.seed, number)


def shape_of(draw: Draw, batching: Batching) -> tuple[int, int, int]:
    return draw.data.shape(draw.index) if draw.is_photo else batching.shape


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


def prepare_data(
    first: int,
    updates: int,
    batching: Batching,
    dataset: Dataset,
    photos: Dataset | None = None,
    also: Sequence[int] = (),
) -> int:
    """Tell the datasets what updates from `first` on will draw, so that they encode it all at once.

    Of no more than `updates` updates and about MOST_AHEAD draws, for what is encoded takes time and room on the disk.
    also: more of the dataset that is needed now. Returns the first update that they were not told of.
    """
    end = first + max(1, min(updates, MOST_AHEAD // batching.batch * batching.reuse))
    draws = [draw for update in range(first, end) for draw in draws_of(update, batching, dataset, photos)]
    for data, more in ((dataset, also), (photos, ())):
        if hasattr(data, "prepare"):
            data.prepare(list(dict.fromkeys([*more, *(draw.index for draw in draws if draw.data is data)])))
    return end


def prepare(run: Run, updates: int, terms: Sequence[Term], batching: Batching, dataset: Dataset, photos=None) -> int:
    """Tell the datasets, and the rewards the texts, that the next updates will ask; see `prepare_data`."""
    end = prepare_data(run.updates, updates, batching, dataset, photos)
    for term in terms:
        if hasattr(term.reward, "prepare"):
            texts = []
            for update in range(run.updates, end):
                draws = draws_of(update, batching, dataset, photos)
                prompts = [draw.data.prompts[draw.index] for draw in draws]
                seeds = [draw_seed(batching, draw.number) for draw in draws]
                texts += [text for side in term.objective.texts(prompts, update + 1, seeds) for text in side]
            term.reward.prepare(list(dict.fromkeys(texts)))
    return end


def log_seeds(update: int, batching: Batching, draws: list[Draw]):
    """Name the noise of each sample, so that any of them can be made again, node by node."""
    seeds = [str(noise_seed(batching, draw)) for draw in draws]
    more = f" and {len(seeds) - MOST_NAMED} more" if len(seeds) > MOST_NAMED else ""
    log.info("Update %d: noise seeds %s%s.", update + 1, ", ".join(seeds[:MOST_NAMED]), more)


def describe_data(data: Dataset) -> str:
    """Such as "24 prompts (9e107d9d)"; other prompts or photos have another digest."""
    kind = "photos" if hasattr(data, "latents") else "prompts"
    return f"{len(data.prompts)} {kind} ({digest(getattr(data, 'content', data.prompts))[:8]})"


def train(
    run: Run,
    updates: int,
    batching: Batching,
    terms: Sequence[Term],
    dataset: Dataset,
    on_update: Callable[[dict], Any] = lambda _: None,
    photos: Dataset | None = None,
    **world,
):
    """Make `updates` more updates; `world` is what else `sample_scores` asks for.

    on_update: called with the metrics of each; what is true ends the loop.
    The state of the last finished update is saved, whatever ends the loop. Raises RuntimeError, before the first, if
    the run's folder can't be written to; what can't be written later is in the run's `troubles`.
    """
    run.troubles.clear()
    run.check_disk()
    run.train_on(" and ".join(describe_data(data) for data in (dataset, photos) if data))
    end = run.updates + updates
    ready = prepare(run, updates, terms, batching, dataset, photos)
    try:
        with events(run.folder / "events", run.updates, run.trouble) as write:
            for _ in range(updates):
                if run.updates >= ready:
                    ready = prepare(run, end - run.updates, terms, batching, dataset, photos)
                log_seeds(run.updates, batching, draws_of(run.updates, batching, dataset, photos))
                scores = sample_scores(run, terms=terms, dataset=dataset, photos=photos, batching=batching, **world)
                metrics = run.update(scores, batching.batch * batching.pairs)
                write(metrics)
                if on_update(metrics):
                    break
    finally:
        run.save()
