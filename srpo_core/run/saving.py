"""When a run is saved, which of its snapshots stay, and what happens where the disk refuses."""

import logging
from functools import partial

from .folder import FolderGone, snapshot_file, snapshots_in
from .history import recent_words_gap
from .run import Run

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3  # in a row, each after one more update, before the run gives up


def save_if_due(run: Run, now: bool = False):
    """Save after this update, and take a snapshot, if the settings say so. now: save whatever they say.

    What can't be saved is said at once, and tried again after each update; MAX_FAILED_SAVES are too many. Raises
    RuntimeError then, and FolderGone at once.
    """
    every = run.settings.snapshot_every
    snapshot = bool(every and run.updates % every == 0)
    if not (now or snapshot or run.failed_saves or run.updates % run.settings.save_every == 0):
        return
    try:
        run.save(snapshot)
        if snapshot:
            delete_old_snapshots(run)  # last, so that at no moment one that was promised is missing
    except FolderGone:
        raise
    except RuntimeError as error:
        if run.failed_saves >= MAX_FAILED_SAVES:
            raise RuntimeError(f"{error} Saving failed {run.failed_saves} times, so the run stopped.") from error
        run.trouble(f"{error} Training goes on meanwhile; saving is tried again after the next update.")


def delete_old_snapshots(run: Run):
    """Delete all but the last few and the best, of those whose metrics are known."""
    known = {metrics["update"] for metrics in run.history}
    numbers = [number for number in snapshots_in(run.folder) if number in known]
    best = max(numbers, key=partial(recent_words_gap, run.history), default=None)
    for number in {*numbers[: -run.settings.keep_snapshots]} - {best}:
        try:
            snapshot_file(run.folder, number).unlink()
        except OSError as error:  # on Windows, while another program has it open
            log.warning("The old snapshot of update %d can't be deleted: %s.", number, error)
