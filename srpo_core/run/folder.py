"""What lies in a run's folder, for those who look into it without opening the run; and the lock on it."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import write_whole, writing
from .state_file import NewerState, SpoiltState, read_state, updates_in

STATE = "state.safetensors"
METRICS = "metrics.jsonl"
SNAPSHOTS = "snapshots"
LOCK = "lock"
FOLDERS = (SNAPSHOTS, "samples", "events")


def snapshot_file(folder: Path, update: int) -> Path:
    return folder / SNAPSHOTS / f"{update:06d}.safetensors"


def snapshots_in(folder: Path) -> list[int]:
    """The updates of the snapshots that there are, ascending; other files beside them are nobody's."""
    names = (file.name for file in (folder / SNAPSHOTS).glob("*.safetensors"))
    numbers = (int(name.partition(".")[0]) for name in names if re.fullmatch(r"[0-9]{6,15}\.safetensors", name))
    return sorted(number for number in numbers if os.path.lexists(snapshot_file(folder, number)))


def whole_snapshots(folder: Path) -> list[int]:
    """The updates of those snapshots that can be read."""
    return [update for update in snapshots_in(folder) if is_whole(snapshot_file(folder, update))]


def is_whole(file: Path) -> bool:
    try:
        read_state(file)
    except (SpoiltState, NewerState):
        return False
    return True


def newest_state(folder: Path) -> Path | None:
    """The file that the run in this folder goes on from; None where there is no run.

    It is the last snapshot where the state has gone, or was never written: a snapshot is written before it.
    """
    if os.path.lexists(folder / STATE):  # a link that leads nowhere is a run that can't be read, not a new one
        return folder / STATE
    snapshots = snapshots_in(folder)
    return snapshot_file(folder, snapshots[-1]) if snapshots else None


def fork(source: Path, update: int | None, target: Path):
    """Let a new run in the folder `target` begin where the run in `source` was at `update`; None: where it is now.

    The caller holds the lock of `target`. That of `source` need not be free: a state is replaced whole, and it is the
    copy of it that is checked. Raises ValueError when there is no such run or snapshot, or it is not whole.
    """
    state = newest_state(source) if update is None else snapshot_file(source, update)
    if state is None or not os.path.lexists(state):
        what = "run" if update is None else f"snapshot of update {update}"
        raise ValueError(f'There is no {what} to start from in "{source.name}"; its snapshots: {_listed(source)}.')

    def copy(path: Path):
        read_state(state)  # before it is copied: it may be anything, and of any size
        shutil.copyfile(state, path)
        read_state(path)
        if (source / METRICS).is_file():  # the state says how many of its lines count
            write_whole(target / METRICS, lambda lines: shutil.copyfile(source / METRICS, lines))
        elif (target / METRICS).is_file():  # of a run that was here before
            (target / METRICS).unlink()

    try:
        write_whole(target / STATE, copy)
    except (SpoiltState, NewerState) as error:
        raise ValueError(
            f'There is nothing to start from: {state} {error}. The whole snapshots of "{source.name}": '
            f"{_listed(source, whole=True)}."
        ) from error


def undo_fork(target: Path):
    """Take back what `fork` wrote."""
    for name in (STATE, METRICS):
        (target / name).unlink(missing_ok=True)


def _listed(folder: Path, whole: bool = False) -> str:
    return ", ".join(map(str, whole_snapshots(folder) if whole else snapshots_in(folder))) or "none"


def saved_updates(folder: Path) -> int:
    """How many updates the run in this folder has saved; 0 where there is none, or it can't be read."""
    file = newest_state(folder)
    try:
        return updates_in(file) if file else 0
    except (SpoiltState, NewerState):
        return 0


class FolderGone(RuntimeError):
    """A run's folder is not its own any more, so nothing may be written there: a sentence."""


class FolderLock:
    """The lock that makes a folder one run's, while it is open: nobody writes there without it.

    Takes it at once, and makes the folder for that. Raises ValueError, a sentence, where another has it, or where the
    folder leads elsewhere, and RuntimeError where it can't be made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / LOCK
        for inside in (LOCK, *FOLDERS):
            if (folder / inside).is_symlink():
                raise ValueError(
                    f"{folder / inside} is a link to another place, where a run would write then: remove the link, or "
                    "choose another run name."
                )
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._file, thread_local=False)
            self._identity = self._acquire()

    def _acquire(self) -> tuple[int, int]:
        """Lock the file, and give its identity: that of the one which has the name before and after.

        Between opening and locking another may `discard` the file, and a third lock the next one of its name.
        """
        with self._file.open("ab") as before:  # for so long no other file gets its identity
            with suppress(Timeout):
                self._lock.acquire(timeout=0)
            identity = _identity(os.fstat(before.fileno()))
        if self._lock.is_locked and self._is_named(identity):
            return identity
        self.release()
        raise ValueError(
            f'The run "{self.folder.name}" is open in another ComfyUI: close that one, or choose another run name.'
        )

    def _is_named(self, identity: tuple[int, int]) -> bool:
        """Whether the file of this identity has the lock's name."""
        try:
            return _identity(os.stat(self._file)) == identity
        except OSError:
            return False

    def holds(self) -> bool:
        """Whether the folder is still the one that was locked, and not deleted, moved or made anew by another."""
        return self._is_named(self._identity)

    def release(self):
        self._lock.release()

    def discard(self):
        """Release it, and take the folder away where nothing else is in it: of a run that never began."""
        alone = self.holds() and os.listdir(self.folder) == [LOCK]
        if alone:
            with suppress(OSError):  # Windows deletes what is open when it is closed, if at all
                self._file.unlink()
        self.release()
        if alone:
            remove_empty(self.folder)


def remove_empty(folder: Path):
    """Remove the folder if it is there and empty."""
    with suppress(OSError):
        folder.rmdir()


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
