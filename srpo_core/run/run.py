"""A training run: its state, what was counted and measured, and the folder it lives in."""

import json
import logging
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import Parameter

from ..files import check_writable, write_whole
from .folder import METRICS, STATE, FolderGone, FolderLock, newest_state, snapshot_file
from .history import History, history_text, read_history
from .opening import Identity, open_state
from .settings import DEFAULT, Settings
from .state import TrainState
from .state_file import VERSION, names_digest

log = logging.getLogger(__name__)


class Run(TrainState):
    """One run: its state, and the folder it lives in.

    Opening a folder that holds a run continues it; the state on disk is always that of a whole update.
    identity: what a run can't change and go on, by name, such as {"rank": "16"}; settings may change.
    lock: the folder's, where others could write there too; nothing is written once it does not hold any more.
    on_trouble: called at once with a sentence, whenever something can't be written and training goes on; `troubles`
    are all of these.
    saved: how many updates are on disk. failed_saves: how many saves in a row failed. history: metrics of each update.
    lost: what is in memory is no whole state, as a failed step could not be undone.
    checked: which of a flow model's signatures were, see `gradient_check.check_once`.
    Raises ValueError when the folder's run has another identity or optimiser, trained other parameters, was written
    by a newer version, or can't be read; then the sentence says which of its snapshots can.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Parameter],
        settings: Settings = DEFAULT,
        *,
        identity: Identity | None = None,
        lock: FolderLock | None = None,
    ):
        super().__init__(parameters, settings)
        self.folder = Path(folder)
        self.lock = lock
        self.on_trouble: Callable[[str], Any] = lambda sentence: None
        self.troubles: list[str] = []
        self.identity = {**(identity or {}), "optimizer": settings.optimizer}
        self.saved = 0
        self.failed_saves = 0
        self.lost = False
        self.history: History = []
        self.data = ""  # what it was trained on last, see train_on
        self.checked: set[Hashable] = set()
        _clear_away(self.folder)
        if (file := newest_state(self.folder)) is not None:
            self._open(file)

    def _open(self, file: Path):
        state = open_state(self.folder, file, self, self.identity)
        self.put_back(state)
        _, header = state
        self.saved = self.updates
        self.data = header["data"]
        if file != self.state_file:
            log.warning('The run "%s" has no %s; it goes on from its snapshot %s.', self.name, STATE, file.name)
        before = json.loads(header["settings"])
        now = asdict(self.settings)
        if changed := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
            log.info('The run "%s" goes on with other settings: %s.', self.name, ", ".join(changed))
        self.history = read_history(self.folder / METRICS, self.updates)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    def train_on(self, data: str):
        """Remember what the run trains on, a few words with a digest; the log says when it was something else."""
        if self.data not in ("", data):
            log.info('The run "%s" goes on with %s; until now it was %s.', self.name, data, self.data)
        self.data = data

    def check_whole(self):
        """Raises RuntimeError, a sentence, if the run is lost."""
        if self.lost:
            since = f"goes on after update {self.saved}" if self.saved else "begins anew"
            raise RuntimeError(
                f'A failed step could not be undone in the run "{self.name}", so it stopped: queue again, also SRPO '
                f"Trainer, and it {since}."
            )

    def check_ours(self):
        """Raises FolderGone if the folder has been deleted, moved or made anew by another since the run was opened."""
        if self.lock and not self.lock.holds():
            raise FolderGone(
                f'The folder of the run "{self.name}", {self.folder}, was deleted, moved or made anew while the run '
                "was open, so nothing more is written there. Move it back and queue again, and the run goes on; or "
                f"queue again as it is, to open what is there then. {self.what_is_safe()}"
            )

    def check_disk(self):
        """Raises RuntimeError, a sentence, if the folder can't be written to or has no room for a state."""
        self.check_ours()
        adapter = sum(parameter.nbytes for parameter in self.parameters.values())
        check_writable(self.folder, 4 * adapter)  # itself, two moments, the average

    def what_is_safe(self) -> str:
        """What a failure can't take from the user any more, as a sentence."""
        rest = f" Updates up to {self.updates} are kept while ComfyUI runs." if self.updates > self.saved else ""
        return f'The run "{self.name}" is saved up to update {self.saved}.{rest}'

    def trouble(self, sentence: str):
        """Say at once that something could not be written, while training goes on."""
        log.warning("%s", sentence)
        if sentence not in self.troubles:
            self.troubles.append(sentence)
        self.on_trouble(sentence)

    def write_aside(self, file: Path, write: Callable[[Path], Any]):
        """Write what the run does not need to go on: where that can't be, it is said, and training goes on.

        Raises FolderGone.
        """
        self.check_ours()
        try:
            write_whole(file, write, self.what_is_safe())
        except RuntimeError as error:
            self.trouble(str(error))

    def add_numbers(self, numbers: Mapping[str, float]):
        """Add to the metrics of the last update what was measured after it; on disk at once, or with its state."""
        if self.history and self.history[-1]["update"] == self.updates:
            self.history[-1] |= numbers
            if self.updates == self.saved:
                self._write_history()

    def _write_history(self):
        self.write_aside(self.folder / METRICS, lambda path: path.write_text(history_text(self.history)))

    def save(self, snapshot: bool = False):
        """Write the state, whole or not at all, and the metrics beside it; nothing where nothing is new.

        snapshot: one more of it, to stay; it comes before the state, which counts on it.
        Raises RuntimeError, a sentence, where it can't be written, and FolderGone.
        """
        if self.updates == self.saved:
            return
        self.check_whole()
        self.check_ours()
        self._write_history()
        self.write_aside(self.folder / "run.json", lambda path: path.write_text(self._about()))
        if snapshot:
            self.write_aside(snapshot_file(self.folder, self.updates), self._write_state)
        try:
            write_whole(self.state_file, self._write_state, self.what_is_safe())
        except RuntimeError:
            self.failed_saves += 1
            raise
        self.saved = self.updates
        if self.failed_saves:
            self.failed_saves = 0
            self.trouble(f'The run "{self.name}" can be saved again, and is, up to update {self.saved}.')

    def _write_state(self, path: Path):
        tensors, header = self.contents()
        header |= self.identity | {"version": str(VERSION), "data": self.data, "tensors": names_digest(tensors)}
        header["settings"] = json.dumps(asdict(self.settings))
        save_file(tensors, path, header)

    def _about(self) -> str:
        """For people: what `state.safetensors` holds. Draws need no random state, they follow from seed and number."""
        counts = {"updates": self.updates, "skipped": self.skipped}
        about = counts | {"identity": self.identity, "settings": asdict(self.settings)}
        return json.dumps(about | {"versions": {"torch": torch.__version__}}, indent=2) + "\n"


def _clear_away(folder: Path):
    """Delete what a process that was killed left; of the two patterns the second is safetensors' own."""
    for pattern in ("**/*.tmp", "**/.tmp*"):
        for unfinished in folder.glob(pattern):
            with suppress(OSError):  # it is only in the way
                unfinished.unlink()
