"""The loop: what each update of a run makes of the prompts, noise and noise levels that it draws."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algorithm.gradient_check import check_once
from ..algorithm.noise_levels import GRID, Branch, Window, draw_position
from ..algorithm.protocols import Dataset, Decoder, FlowModel
from ..algorithm.step import Compared, Noised, Score, first_answers, one_step_recover, score_recovered
from ..algorithm.terms import Spread, Term
from ..digest import digest
from .draws import Batching, Draw, draw_noise, draw_seed, draws_of, noise_seed, of_one_shape, shape_of
from .events import events
from .run import Run
from .training import Training

log = logging.getLogger(__name__)

MOST_NAMED = 32  # seeds in a line of the log

MOST_AHEAD = 512  # draws that are encoded before they are needed: gigabytes of prompts for FLUX, and minutes


def sample_scores(run: Run, training: Training) -> Iterator[Score]:
    """The scores of the run's next update, each computed when it is asked for.

    Photos stand in for rollouts (offline). Those that share a forward are of one shape; each sample keeps the noise
    and the noise level of its number, so how many share one changes nothing. A guard compares all samples to the
    frozen model; without one the first alone is compared, to be seen. Rewards that are normalised, but have said
    nothing yet, are asked beforehand: the spread of all that they say in this update scales it.
    """
    flow = training.flow
    decoder = training.decoder
    batching = training.batching
    window = training.window
    guard = training.guard
    age = run.updates % batching.reuse
    compare = True
    update = run.updates + 1
    if age == 0:
        run.rollouts = {}
    draws = draws_of(run.updates, batching, training.dataset, training.photos)
    check_gradients(run, flow, window, batching, draws)
    pairs = range(age * batching.pairs, (age + 1) * batching.pairs)
    groups = sampled(run, flow, batching, draws)
    spreads = run.spreads
    new = [t for t in training.terms if t.normalised and t.trains and t.name not in run.spreads]
    if new:
        groups = list(groups)
        spreads = spreads | first_spreads(flow, decoder, asked_of(new, window, batching, pairs, groups), update)
    for asked in asked_of(training.terms, window, batching, pairs, groups):
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


def prepare_data(
    updates: range, batching: Batching, dataset: Dataset, *, photos: Dataset | None = None, also: Sequence[int] = ()
) -> int:
    """Tell the datasets what these updates, the first is 0, will draw, so that they encode it all at once.

    They are told of about MOST_AHEAD draws at most, for what is encoded takes time and room on the disk.
    also: more of the dataset that is needed now. Returns the first update that they were not told of.
    """
    end = updates.start + max(1, min(len(updates), MOST_AHEAD // batching.batch * batching.reuse))
    draws = [draw for update in range(updates.start, end) for draw in draws_of(update, batching, dataset, photos)]
    for data, more in ((dataset, also), (photos, ())):
        if hasattr(data, "prepare"):
            data.prepare(list(dict.fromkeys([*more, *(draw.index for draw in draws if draw.data is data)])))
    return end


def prepare(run: Run, training: Training, updates: int) -> int:
    """Tell the datasets, and the rewards the texts, that the next updates will ask; see `prepare_data`."""
    batching = training.batching
    dataset = training.dataset
    photos = training.photos
    end = prepare_data(range(run.updates, run.updates + updates), batching, dataset, photos=photos)
    for term in training.terms:
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


def train(run: Run, training: Training, updates: int, on_update: Callable[[dict], Any] = lambda _: None):
    """Make `updates` more updates.

    on_update: called with the metrics of each; what is true ends the loop.
    The state of the last finished update is saved, whatever ends the loop. Raises RuntimeError, before the first, if
    the run's folder can't be written to; what can't be written later is in the run's `troubles`.
    """
    run.troubles.clear()
    run.check_disk()
    run.train_on(" and ".join(describe_data(data) for data in (training.dataset, training.photos) if data))
    batching = training.batching
    end = run.updates + updates
    ready = prepare(run, training, updates)
    try:
        with events(run.folder / "events", run.updates, run.trouble) as write:
            for _ in range(updates):
                if run.updates >= ready:
                    ready = prepare(run, training, end - run.updates)
                log_seeds(run.updates, batching, draws_of(run.updates, batching, training.dataset, training.photos))
                metrics = run.update(sample_scores(run, training), batching.batch * batching.pairs)
                write(metrics)
                if on_update(metrics):
                    break
    finally:
        run.save()
