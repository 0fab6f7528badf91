"""An open run on a MODEL: its adapter, the core's Run, and what it writes for the host's loaders."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths

from ..srpo_core.files import check_writable
from ..srpo_core.run.folder import FolderLock, fork, newest_state, remove_empty, undo_fork
from ..srpo_core.run.opening import Misfit
from ..srpo_core.run.run import Run
from ..srpo_core.run.settings import Settings
from .file_metadata import metadata_of
from .folders import check_not_taken, check_run_name, lora_folder, model_folder, run_folder
from .host.adapters.settings import NO_LORA, AdapterSettings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenRunSettings:
    """What is trained and how it steps. start_from: where a new run begins, as `fork_from` takes it."""

    adapter: AdapterSettings
    run: Settings
    start_from: str | None = None


class OpenRun:
    """An open run on a MODEL.

    base, model: the MODEL without and with the adapter. run: the core's Run. left_out: a sentence about what of the
    file that it has just begun at is not in it, or empty. opening: tells it from the same run opened another time.
    taught: what it was trained by last, see `taught_by`.
    """

    left_out = ""

    def __init__(self, name: str, base: ModelPatcher, settings: OpenRunSettings, save_open: Callable[[str], None]):
        """save_open: see `fork_from`."""
        from .host.adapters.adapter import Adapter

        self.name = name
        self.base = base
        self.settings = settings
        self.opening = uuid.uuid4().hex
        self.taught: list[dict[str, Any]] = []
        self.adapter = Adapter(base, settings.adapter)
        check_not_taken(name)
        self.lock = FolderLock(run_folder(name))
        try:
            check_writable(run_folder(name))
            check_writable(self._folder)
            self.run = self._open(save_open)
        except BaseException:
            self._let_go()
            raise
        self.take(base)

    def made_with(self, base: ModelPatcher, settings: OpenRunSettings) -> bool:
        """Whether this run can go on with that MODEL, whatever else it carries, and with those settings."""
        same = self.settings.adapter == settings.adapter and self.run.settings == settings.run
        same = same and (self.run.updates or self.settings.start_from == settings.start_from)
        return bool(same) and self.base.model is base.model and self.adapter.fits(base)

    def take(self, base: ModelPatcher):
        """Go on with this MODEL: what it carries now counts, and nothing that an earlier one did."""
        self.base = base
        self.model = self.adapter.attach(base)

    def _open(self, save_open: Callable[[str], None]) -> Run:
        """The run in the folder, which begins where another is or was, if it is new and shall."""
        folder = run_folder(self.name)
        adapter = self.settings.adapter
        start_from = self.settings.start_from
        began = fork_from(self.name, start_from, save_open)
        try:
            self._load_start_lora()
            return Run(folder, self.adapter.parameters, self.settings.run, identity=adapter.identity(), lock=self.lock)
        except BaseException as error:
            if began:
                undo_fork(folder)
            if began and isinstance(error, Misfit):
                raise ValueError(
                    f'The run "{self.name}" can\'t begin at "{start_from}", which was made with {error.other}: set '
                    "that as it was there, or choose another start."
                ) from error
            raise

    def usable(self) -> bool:
        """Whether the run can go on from memory: it is whole there, and its folder is still its own."""
        return self.lock.holds() and not self.run.lost

    def close(self):
        """Save the run and let go of it; one that can't go on from memory is let go of as it was saved.

        Raises RuntimeError, a sentence, where it can't be saved; then it is as open as before.
        """
        if self.usable():
            self.run.save()
        else:
            log.warning('The run "%s" is closed as it was saved, at update %d.', self.name, self.run.saved)
        self._let_go()
        self.run.optimizer.state.clear()  # for as long as there is RAM, ComfyUI's cache keeps this object
        self.run.ema.clear()

    def _let_go(self):
        """Release the lock; a run that has written nothing leaves no folders."""
        with suppress(ValueError):  # it is a link that leads elsewhere
            remove_empty(self._folder)
        self.lock.discard()

    @property
    def _folder(self) -> Path:
        return model_folder(self.name) if self.settings.adapter.whole_layers else lora_folder(self.name)

    def _load_start_lora(self):
        from .host.adapters.start_lora import start_at

        name = self.settings.adapter.start_lora
        if name != NO_LORA and newest_state(run_folder(self.name)) is None:
            file = Path(folder_paths.get_full_path_or_raise("loras", name))
            self.left_out = start_at(self.adapter, self.base.model, file)

    def save_lora(self) -> Path:
        """Write the adapter as it is now to where the host's LoRA loaders look; returns the file.

        Where whole layers are trained it is the model, for the host's model loader, and its older files are deleted.
        With a moving average that is written too, beside it. What can't be written is among the run's `troubles`.
        """
        self.run.check_whole()
        file = self._folder / f"{self.name}_{self.run.updates:06d}.safetensors"
        average = file.with_stem(f"{file.stem}_ema")
        self._write(file)
        if self.run.ema:
            with self.run.averaged():
                self._write(average)
        if self.settings.adapter.whole_layers and file.exists():
            for older in set(self._folder.glob(f"{self.name}_[0-9]*.safetensors")) - {file, average}:
                self._delete(older)
        return file

    def _delete(self, older: Path):
        try:
            older.unlink()
        except OSError as error:  # on Windows, while a loader has it mapped
            self.run.trouble(f"The older model {older} can't be deleted ({error}): delete it by hand.")

    def _write(self, file: Path):
        from .host.adapters.adapter import save_model

        metadata = metadata_of(self.run, self.base, self.settings.adapter, self.taught)
        if self.settings.adapter.whole_layers:
            self.run.write_aside(file, lambda path: save_model(self.base, self.adapter, path, metadata))
        else:
            state = self.adapter.state_dict()
            self.run.write_aside(file, lambda path: comfy.utils.save_torch_file(state, str(path), metadata))


def fork_from(name: str, start_from: str | None, save_open: Callable[[str], None]) -> bool:
    """Let a run that is new begin where another is, or was: "its name", or "its name@update" for a snapshot.

    For who holds the run's lock. start_from: None is nowhere. save_open: saves the run of a name, if it is open.
    Returns whether the run begins there now: one that has begun goes on instead. Raises ValueError for a run or
    snapshot that does not exist or is not whole.
    """
    folder = run_folder(name)
    if start_from is None or newest_state(folder) is not None:
        return False
    source, at, update = (part.strip() for part in start_from.partition("@"))
    if not source:
        raise ValueError(f'start_from is "{start_from}" and names no run: write its name, as in "toy" or "toy@30".')
    check_run_name(source)
    if at and not re.fullmatch("[0-9]{1,15}", update):
        raise ValueError(f'"{start_from}" names no snapshot: write the run\'s name, "@" and an update, as in "toy@30".')
    save_open(source)
    fork(run_folder(source), int(update) if update else None, folder)
    return True
