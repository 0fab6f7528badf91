"""One update of a run, from top to bottom.

`sample_scores` draws, rolls out, injects noise, takes one step of the model, recovers and scores; `make_update` pulls,
clips, steps, averages, remembers and saves. The scores are computed as they are pulled, one after the other.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..algorithm.gradient_check import check_once
from ..algorithm.metrics import describe, summarise
from ..algorithm.noise_levels import GRID
from ..algorithm.step import Compared, Score, first_answers, score_recovered
from ..algorithm.terms import Spread, Term
from ..algorithm.ways import Way
from ..checks import check_integer
from .draws import Draw, cond_of, draw_noise, draws_of, noise_seed, of_one_shape, shape_of
from .rollouts import Group, groups_of
from .run import Run
from .saving import save_if_due
from .score_checks import check_belongs, check_reached
from .training import Training
from .undo import Undo

log = logging.getLogger(__name__)

MAX_SKIPPED = 10  # updates in a row without a finite gradient, before the run gives up


class NotFinite(Exception):
    """Why an update is skipped, as the end of a sentence."""


def sample_scores(run: Run, training: Training) -> Iterator[Score]:
    """The scores of the run's next update, each computed when it is asked for.

    Photos stand in for rollouts (offline). Those that share a forward are of one shape; each sample keeps the noise
    and the noise level of its number, so how many share one changes nothing. A guard compares all samples to the
    frozen model; without one the first alone is compared, to be seen. Rewards that are normalised, but have answered
    nothing yet, are asked beforehand: the spread of all their answers in this update scales it.
    """
    batching = training.batching
    age = run.updates % batching.reuse  # of the rollouts
    if age == 0:
        run.rollouts = {}
    draws = draws_of(run.updates, batching, training.dataset, training.photos)
    check_gradients(run, training, draws)
    groups: Iterable[Group] = groups_of(run, training.flow, batching, draws, traced=bool(training.traced))  # rolls out
    pairs = range(age * batching.pairs, (age + 1) * batching.pairs)
    spreads = run.spreads
    new = [t for t in training.terms if t.normalised and t.trains and t.name not in run.spreads]
    if new:
        groups = list(groups)
        asked_before = forwards(training, new, pairs, groups)
        spreads = spreads | first_spreads(training, asked_before, run.updates + 1)
    for number, forward in enumerate(forwards(training, training.terms, pairs, groups)):
        compared = forward.compared(whole=bool(training.guard), first=number == 0)
        recovered = forward.way.recover(training.flow, forward.cond, compared=compared, guard=training.guard)
        yield score_recovered(
            recovered,
            forward.way.branch,
            training.decoder,
            forward.terms,
            prompts=forward.prompts,
            update=run.updates + 1,
            spreads=spreads,
        )


@torch.inference_mode(False)  # ComfyUI runs nodes in it
def make_update(run: Run, scores: Iterable[Score], prompts: int, *, save: bool = False) -> dict[str, float]:
    """One optimiser step from the scores of `prompts` prompts (once per pair of branches), averaged; its metrics.

    save: the run is saved after it, also where that is not due.
    Whatever is raised on the way leaves the run as it was, or, where its state is large, as it was last saved: see
    `Undo`. A loss, gradient or state that is not finite skips the step; raises RuntimeError after MAX_SKIPPED of them
    in a row, and after MAX_FAILED_SAVES failed saves. Raises ValueError, before anything is changed, for scores that
    are not of this run's adapter as it is now, and where there were gradients and none reached it.
    """
    check_integer("prompts", prompts, 1)
    run.check_whole()
    why_skipped = ""
    undo = Undo(run)
    try:
        with undo:
            run.optimizer.zero_grad(set_to_none=True)  # whatever another's update left here
            run.turn("train")
            summaries = []
            for score in scores:
                check_belongs(score, run.parameters, run.updates + 1, run.name)
                score.pull(1 / prompts)
                summaries.append(summarise(score))
            check_reached(summaries, run.parameters, run.name)
            norm = torch.nn.utils.clip_grad_norm_(run.parameters.values(), run.settings.max_gradient_norm).item()
            metrics = {"update": run.updates + 1, **describe(summaries), "gradient_norm": norm}
            if not (math.isfinite(norm) and math.isfinite(metrics["loss"])):
                raise NotFinite("its loss or gradient is not finite")
            undo.keep()
            run.step()
            run.turn("eval")
            run.average()
            run.remember(summaries)
            if not_finite := run.not_finite():
                raise NotFinite(not_finite)
    except NotFinite as why:
        if undo.to_last_save:
            _stop_gone_back(run, metrics["update"], why)
        why_skipped = str(why)
    _count(run, metrics, why_skipped)
    save_if_due(run, now=save)
    _stop_if_skipping(run)
    return metrics


def _stop_gone_back(run: Run, update: float, why: NotFinite):
    run.check_whole()
    raise RuntimeError(
        f"Update {update} left {why}. The state is too large to be copied before each step, so the run goes on as it "
        f"was last saved, at update {run.updates}. {_gentler(run)}"
    ) from why


def _count(run: Run, metrics: dict[str, float], why_skipped: str):
    run.updates += 1
    run.skipped_in_a_row = run.skipped_in_a_row + 1 if why_skipped else 0
    if why_skipped:
        run.skipped += 1
        log.warning("Update %d skipped: %s.", run.updates, why_skipped)
    run.history.append(metrics)


def _stop_if_skipping(run: Run):
    if run.skipped_in_a_row >= MAX_SKIPPED:
        run.save()
        raise RuntimeError(
            f"{MAX_SKIPPED} updates in a row had no finite loss or gradient, or led to numbers that are not finite, so "
            f"the run stopped at update {run.updates}; the adapter is as it was before them. {_gentler(run)}"
        )


def _gentler(run: Run) -> str:
    rate = run.settings.learning_rate
    return f"Lower the learning rate ({rate:g}), or run the reward and the VAE in fp32 or bf16."


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One score of an update: the draws that share it, the way to it, and the terms that are asked."""

    draws: list[Draw]
    cond: Any
    way: Way
    terms: list[Term]

    @property
    def prompts(self) -> list[str]:
        return [draw.prompt for draw in self.draws]

    def compared(self, whole: bool, first: bool) -> Compared | None:
        """What is held against the frozen model: the whole batch, or the first sample of an update's first forward."""
        if whole:
            return Compared(len(self.draws), self.cond)
        return Compared(1, cond_of(self.draws[:1])) if first else None


def forwards(training: Training, terms: Iterable[Term], pairs: range, groups: Iterable[Group]) -> Iterator[Forward]:
    """The scores of an update: of each group, every way of each pair that a reward trains; the others watch there."""
    routes = list(dict.fromkeys(term.objective.route for term in terms if term.trains))
    for group in groups:
        cond = cond_of(group.draws)
        for route, pair in product(routes, pairs):
            here = [term for term in terms if term.objective.route == route or not term.trains]
            for way in route.ways(group.sampled, training.window, pair):
                asked = [term for term in here if term.objective.trains(way.branch)]
                if any(term.trains for term in asked):
                    yield Forward(draws=group.draws, cond=cond, way=way, terms=asked)


def first_spreads(training: Training, asked: Iterable[Forward], update: int) -> dict[str, Spread]:
    """The spreads of all answers in an update, before it: the answers to one sample alone have none."""
    spreads: dict[str, Spread] = {}
    for forward in asked:
        recovered = forward.way.recover(training.flow, forward.cond)
        for answer in first_answers(
            recovered, forward.way.branch, training.decoder, forward.terms, prompts=forward.prompts, update=update
        ):
            answer.add_to(spreads.setdefault(answer.name, Spread()))
    return spreads


def check_gradients(run: Run, training: Training, draws: list[Draw]):
    """Raises RuntimeError, before anything is sampled, if a gradient is wrong. Each kind of draw is checked once."""
    batching = training.batching
    for draw, *_ in of_one_shape(draws, batching):

        def at(draw: Draw = draw) -> tuple[Tensor, Tensor]:
            noise = draw_noise([noise_seed(batching, draw)], shape_of(draw, batching))
            return noise, training.window.branches([GRID // 2])[0].sigma_in

        check_once(run.checked, training.flow, training.example_of(draw), at)
