"""What lies in a run's folder, for those who look into it without opening the run."""

import shutil
from pathlib import Path

from safetensors import safe_open

from .files import write_whole

STATE = "state.safetensors"
METRICS = "metrics.jsonl"
SNAPSHOTS = "snapshots"


def snapshot_file(folder: Path, update: int) -> Path:
    return folder / SNAPSHOTS / f"{update:06d}.safetensors"


def snapshots_in(folder: Path) -> list[int]:
    """The updates of the snapshots that there are, ascending."""
    return sorted(int(file.stem) for file in (folder / SNAPSHOTS).glob("*.safetensors"))


def branch(source: Path, update: int | None, target: Path):
    """Let a new run in the folder `target` begin where the run in `source` was at `update`; None: where it is now.

    Raises ValueError when there is no such run or snapshot.
    """
    state = source / STATE if update is None else snapshot_file(source, update)
    if not state.exists():
        there = ", ".join(map(str, snapshots_in(source))) or "none"
        what = "run" if update is None else f"snapshot of update {update}"
        raise ValueError(f'There is no {what} to start from in "{source.name}"; its snapshots: {there}.')
    # The state says how many lines of the metrics count.
    write_whole(target / METRICS, lambda path: shutil.copyfile(source / METRICS, path))
    write_whole(target / STATE, lambda path: shutil.copyfile(state, path))


def saved_updates(folder: Path) -> int:
    """How many updates the run in this folder has saved; 0 where there is none."""
    file = folder / STATE
    if not file.exists():
        return 0
    with safe_open(file, "pt") as state:
        return int(state.metadata()["updates"])
