"""The loop: update after update, with all encoded beforehand that they will ask for."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..algorithm.protocols import Dataset, PhotoDataset, TrainingObjective
from ..digest import digest
from ..rewards import PreparedReward
from .draws import Batching, Draw, draw_seed, draws_of, noise_seed
from .events import events
from .run import Run
from .training import Training
from .update import make_update, sample_scores

log = logging.getLogger(__name__)

MOST_NAMED = 32  # seeds in a line of the log
MOST_AHEAD = 512  # draws that are encoded before they are needed: gigabytes of prompts for FLUX, and minutes


def prepare_data(
    made: range,
    batching: Batching,
    dataset: Dataset,
    *,
    photos: PhotoDataset | None = None,
    also: Sequence[int] = (),
) -> int:
    """Tell the datasets what the next updates will draw, so that they encode it all at once.

    They are told of about MOST_AHEAD draws at most, for what is encoded takes time and room on the disk.
    made: how many updates the run has made before each of them, 0 before its first.
    also: more of the dataset that is needed now. Returns how many are made before the first that they were not told of.
    """
    end = made.start + max(1, min(len(made), MOST_AHEAD // batching.batch * batching.reuse))
    draws = [draw for before in range(made.start, end) for draw in draws_of(before, batching, dataset, photos)]
    dataset.prepare(list(dict.fromkeys([*also, *(draw.index for draw in draws if draw.data is dataset)])))
    if photos:
        photos.prepare(list(dict.fromkeys(draw.index for draw in draws if draw.data is photos)))
    return end


def prepare(run: Run, training: Training, updates: int) -> int:
    """Tell the datasets what the next updates will draw, and the rewards what they will read; see `prepare_data`."""
    coming = range(run.updates, run.updates + updates)
    end = prepare_data(coming, training.batching, training.dataset, photos=training.photos)
    for term in training.terms:
        if isinstance(term.reward, PreparedReward):
            texts = [text for made in range(run.updates, end) for text in texts_of(made, training, term.objective)]
            term.reward.prepare(list(dict.fromkeys(texts)))
    return end


def texts_of(made: int, training: Training, objective: TrainingObjective) -> list[str]:
    """All that a reward with this objective will be asked in the update after `made` others."""
    draws = draws_of(made, training.batching, training.dataset, training.photos)
    seeds = [draw_seed(training.batching, draw.number) for draw in draws]
    positive, negative = objective.texts([draw.prompt for draw in draws], made + 1, seeds)
    return [*positive, *negative]


def log_seeds(update: int, batching: Batching, draws: list[Draw]):
    """Name the noise of each sample, so that any of them can be made again, node by node."""
    seeds = [str(noise_seed(batching, draw)) for draw in draws]
    more = f" and {len(seeds) - MOST_NAMED} more" if len(seeds) > MOST_NAMED else ""
    log.info("Update %d: noise seeds %s%s.", update, ", ".join(seeds[:MOST_NAMED]), more)


def describe_data(data: Dataset) -> str:
    """A few words, such as "24 prompts (9e107d9d)"; other prompts or photos have another digest."""
    kind = "photos" if isinstance(data, PhotoDataset) else "prompts"
    return f"{len(data.prompts)} {kind} ({digest(data.content())[:8]})"


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
                draws = draws_of(run.updates, batching, training.dataset, training.photos)
                log_seeds(run.updates + 1, batching, draws)
                metrics = make_update(run, sample_scores(run, training), batching.batch * batching.pairs)
                write(metrics)
                if on_update(metrics):
                    break
    finally:
        run.save()
