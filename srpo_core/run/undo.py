"""Undoing an update that does not succeed: the state is kept whole before it is changed, and put back."""

import logging
from contextlib import suppress
from types import TracebackType

import torch

from .folder import newest_state
from .opening import check_fits
from .run import Run
from .state import TrainState
from .state_file import State, read_state

log = logging.getLogger(__name__)

MOST_COPIED = 8 * 2**30  # bytes of state that are copied before each step: of a large LoRA, not of a whole model
MOST_IN_PLACE = 2**30  # of these, on their device: of FLUX's LoRA of rank 16, less than what a branch just freed there


class Undo:
    """Inside, an update is made; whatever is raised there leaves the run as it was.

    `keep` is to be called before anything but gradients and rollouts is changed, as late as can be, for the copy takes
    memory. Of a state that is larger than MOST_COPIED there is none: from then on a failure puts back what was last
    saved, all of it, its rollouts and count of updates too. A run that has neither is lost.

    A schedule-free optimiser changes parameters when it is turned, so its state is copied at once. Where it is too
    large for that, a failure before `keep` only turns it back: its parameters are then as before, up to rounding.

    to_last_save: whether a failure puts back, or has put back, what was last saved.
    """

    def __init__(self, run: Run):
        self.run = run
        self.rollouts = dict(run.rollouts)
        self.copy = copy_of(run, in_place=False) if run.turns else None
        self.to_last_save = False

    def __enter__(self) -> "Undo":
        return self

    def keep(self):
        """Keep the state whole, as it is now."""
        self.copy = self.copy or copy_of(self.run)
        self.to_last_save = self.copy is None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.run.optimizer.zero_grad(set_to_none=True)
        if error is not None:
            self._put_back()

    def _put_back(self):
        try:
            self.run.turn("eval")
            self._restore()
        except BaseException as error:
            self.run.lost = True
            log.error(
                'The run "%s" is not whole in memory any more: a failed step left it so (%s).', self.run.name, error
            )
            if not isinstance(error, Exception):
                raise

    def _restore(self):
        """Before the state is kept there is nothing to put back but the rollouts."""
        if self.to_last_save:
            return go_back(self.run)
        rollouts = self.rollouts
        if self.copy:
            self.run.put_back(self.copy)
            # A late copy has those of this update too.
            rollouts = {name: self.run.rollouts.get(name, latent) for name, latent in rollouts.items()}
        self.run.rollouts = rollouts


def copy_of(state: TrainState, in_place: bool = True) -> State | None:
    """A copy of the whole state; None if it is large.

    in_place: on its device, where it is small and fits there; else on the CPU.
    """
    tensors, header = state.contents()
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MOST_COPIED:
        return None
    if in_place and size <= MOST_IN_PLACE:
        with suppress(torch.OutOfMemoryError):
            return {name: tensor.clone() for name, tensor in tensors.items()}, header
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}, header


def go_back(run: Run):
    """Let the run be what was last saved of it. Raises RuntimeError where nothing was."""
    file = newest_state(run.folder) if run.saved else None
    if file is None:
        raise RuntimeError("nothing of it was saved yet, and its state is too large to be copied before each step")
    state = read_state(file)  # this run wrote it; to try the optimiser's part on stand-ins takes memory
    check_fits(run.name, state, run, run.identity)
    run.put_back(state)
    run.saved = run.updates
    run.history = [metrics for metrics in run.history if metrics["update"] <= run.updates]
    log.warning("The step failed half-way; the run goes on as it was last saved, at update %d.", run.updates)
