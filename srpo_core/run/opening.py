"""Whether a run can go on from a state on disk, and what to tell the user where it can't."""

from pathlib import Path

import torch
from torch import Tensor

from .folder import snapshot_file, snapshots_in
from .optimizers import check_optimizer_state
from .state import TrainState, averaged_dtype, named
from .state_file import NewerState, SpoiltState, State, read_state

Identity = dict[str, str]  # what a run can't change and go on, by name, such as {"rank": "16"}


class Misfit(ValueError):
    """A state is whole, but not of this run: a sentence. other: what it was made with."""

    def __init__(self, name: str, other: str):
        self.other = other
        super().__init__(
            f'The run "{name}" was made with {other}: give this one a new name, or go back to what it was made with.'
        )


def open_state(folder: Path, file: Path, now: TrainState, identity: Identity) -> State:
    """The state in `file`, from which the run in `folder` can go on.

    Raises ValueError, a sentence, where it can't; it says which of the run's snapshots can be read.
    """
    try:
        return _read(folder, file, now, identity)
    except SpoiltState as error:
        raise ValueError(_spoilt(folder, file, error, now=now, identity=identity)) from error
    except NewerState as error:
        raise ValueError(f'The run "{folder.name}" {error}') from error


def check_fits(name: str, state: State, now: TrainState, identity: Identity):
    """Raises Misfit, and SpoiltState where the moving average is of another type than this run's."""
    tensors, header = state
    other = [f"{what} {header.get(what)}, not {value}" for what, value in identity.items() if header.get(what) != value]
    saved = {name: dtype_and_shape(tensor) for name, tensor in named("adapter", tensors).items()}
    if not other and saved != {name: dtype_and_shape(p) for name, p in now.parameters.items()}:
        other = ["another model"]
    if other:
        raise Misfit(name, " and ".join(other))
    for parameter_name, parameter in now.parameters.items():
        average = tensors.get(f"ema.{parameter_name}")
        if average is not None and average.dtype != averaged_dtype(parameter):
            raise SpoiltState(f"has a moving average in {average.dtype}")


def _read(folder: Path, file: Path, now: TrainState, identity: Identity) -> State:
    """A state that this run can go on from. Raises SpoiltState, NewerState and Misfit."""
    tensors, header = read_state(file)
    check_fits(folder.name, (tensors, header), now, identity)
    try:
        check_optimizer_state(now.settings.optimizer, now.parameters, tensors, header["numbers"])
    except ValueError as error:
        raise SpoiltState(str(error)) from error
    return tensors, header


def _spoilt(folder: Path, file: Path, error: SpoiltState, *, now: TrainState, identity: Identity) -> str:
    """The sentence for a run that can't be opened; what it advises has been tried, up to the new name."""
    there = snapshots_in(folder)
    whole = [update for update in there if _can_begin_at(folder, update, now, identity)]
    if whole:
        numbers = ", ".join(map(str, whole))
        advice = f"Whole are its snapshots of the updates {numbers}: to go on from the last one, queue with a new "
        advice += f'run name and "{folder.name}@{whole[-1]}" in start_from (start: another run), and all else as it is.'
    else:
        advice = "None of its snapshots is whole. " if there else "It has no snapshots. "
        advice += f"Put a copy of {file.name} there if you have one, or take a new run name to begin anew."
    return f'The run "{folder.name}" can\'t go on: {file} {error}. {advice}'


def _can_begin_at(folder: Path, update: int, now: TrainState, identity: Identity) -> bool:
    try:
        _read(folder, snapshot_file(folder, update), now, identity)
    except (SpoiltState, NewerState, Misfit):
        return False
    return True


def dtype_and_shape(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)
