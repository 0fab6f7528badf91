"""The runs that are open in this ComfyUI, by name: each an adapter on a MODEL and the core's Run."""

import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_execution.utils import get_executing_context

from ..srpo_core.checks import check_number, check_whole
from ..srpo_core.files import check_writable
from ..srpo_core.run.folder import FolderLock, fork, newest_state, undo_fork
from ..srpo_core.run.opening import Misfit
from ..srpo_core.run.run import Run
from ..srpo_core.run.settings import Settings
from .folders import check_not_taken, check_run_name, lora_folder, model_folder, run_folder
from .host.progress import show_text

log = logging.getLogger(__name__)

NO_LORA = "none"


@dataclass(frozen=True)
class AdapterSettings:
    """What is trained, by the inputs of SRPO Trainer. start_lora: a file of ComfyUI's "loras", for a new run.

    Raises ValueError, a sentence, for what is no number in its range.
    """

    kind: str
    rank: int
    alpha: float
    seed: int
    target: str = "all"
    start_lora: str = NO_LORA
    precision: str = "fp32"

    def __post_init__(self):
        check_whole("rank", self.rank, 1, 1024)
        check_number("alpha", self.alpha, 0.01, 1024.0)
        check_whole("seed", self.seed, 0, 2**64 - 1)

    @property
    def whole_layers(self) -> bool:
        return self.kind == "full"

    def identity(self) -> dict[str, str]:
        """What a run can't change; a target or a precision that is the default has no name in it."""
        chosen = [choice for choice in (self.target, self.precision) if choice not in ("all", "fp32")]
        kind = {"adapter": f"{self.kind} ({', '.join(chosen)})" if chosen else self.kind}
        return kind if self.whole_layers else kind | {"rank": str(self.rank), "alpha": str(self.alpha)}


class Trainer:
    """An open run on a MODEL.

    base, model: the MODEL without and with the adapter. run: the core's Run. left_out: a sentence about what of the
    file that it has just begun at is not in it, or empty. opening: tells it from the same run opened another time.
    """

    left_out = ""

    def __init__(self, name: str, base, adapter: AdapterSettings, settings: Settings, start_from: str = ""):
        from .host.adapters.adapter import Adapter

        self.name = name
        self.base = base
        self.adapter_settings = adapter
        self.opening = uuid.uuid4().hex
        self.adapter = Adapter(
            base, adapter.kind, adapter.rank, adapter.alpha, adapter.seed, adapter.target, adapter.precision
        )
        check_not_taken(name)
        self.lock = FolderLock(run_folder(name))
        try:
            check_writable(run_folder(name))
            check_writable(self._folder)
            self.run = self._open(settings, start_from)
        except BaseException:
            self.lock.release()
            raise
        self.take(base)

    def made_with(self, base, adapter: AdapterSettings, settings: Settings) -> bool:
        """Whether this run can go on with that MODEL, whatever else it carries, and with those settings."""
        same = self.base.model is base.model and self.adapter_settings == adapter and self.run.settings == settings
        return same and self.adapter.fits(base)

    def take(self, base):
        """Go on with this MODEL: what it carries now counts, and nothing that an earlier one did."""
        self.base = base
        self.model = self.adapter.attach(base)

    def _open(self, settings: Settings, start_from: str) -> Run:
        """The run in the folder, which begins where another is or was, if it is new and shall."""
        folder = run_folder(self.name)
        began = begin_at(self.name, start_from, self.adapter_settings.start_lora)
        try:
            self._start()
            return Run(folder, self.adapter.parameters, settings, self.adapter_settings.identity(), self.lock)
        except BaseException as error:
            if began:
                undo_fork(folder)
            if began and isinstance(error, Misfit):
                raise ValueError(
                    f'The run "{self.name}" can\'t begin at "{start_from}", which was made with {error.other}: set '
                    "that as it was there, or empty start_from."
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
        self.lock.release()
        self.run.optimizer.state.clear()  # for as long as there is RAM, ComfyUI's cache keeps this trainer
        self.run.ema.clear()

    @property
    def _folder(self) -> Path:
        return model_folder(self.name) if self.adapter_settings.whole_layers else lora_folder(self.name)

    def _start(self):
        from .host.adapters.start_lora import start_at

        name = self.adapter_settings.start_lora
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
        if self.adapter_settings.whole_layers and file.exists():
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

        metadata = {"srpo_updates": str(self.run.updates)}
        if self.adapter_settings.whole_layers:
            self.run.write_aside(file, lambda path: save_model(self.base, self.adapter, path, metadata))
        else:
            state = self.adapter.state_dict()
            self.run.write_aside(file, lambda path: comfy.utils.save_torch_file(state, str(path), metadata))


def _check_carries_none(model):
    """Two runs on one MODEL would each train on top of what the other is doing at that moment."""
    from .host.adapters.adapter import adapter_of

    if adapter_of(model) is None:
        return
    other = trainer_of(model)
    whose = f'the run "{other.name}"' if other else "another run"
    raise ValueError(
        f"The model that comes in carries the adapter of {whose} already: connect the model from before that SRPO "
        "Trainer. To train on top of what it has learned, load its LoRA from output/loras/srpo with a LoRA loader "
        "before this node; to begin a new run where it is, name it in start_from."
    )


@dataclass
class _Open:
    trainer: Trainer
    prompt: str  # which queued prompt, and which node of it, has the run
    node: str


_open: dict[str, _Open] = {}


def open_trainer(name: str, base, adapter: AdapterSettings, settings: Settings, start_from: str = "") -> Trainer:
    """The run of this name: as it is open already, else from its folder, else new; then it begins at `start_from`.

    Runs that only earlier prompts used are saved and closed: each holds memory. One that can't be saved stays open,
    and its node says so.
    Raises ValueError for a name that is taken in this prompt, by another node or with other settings, or by another
    ComfyUI, and for a MODEL that carries a run's adapter already.
    """
    from .host.fitting import check_model

    check_run_name(name)
    check_model(base)
    _check_carries_none(base)
    context = get_executing_context()
    held = _open.get(name)
    if held and held.prompt == context.prompt_id and held.node != context.node_id:
        raise ValueError(
            f'Two SRPO Trainers of this workflow train the run "{name}" at once: give one of them another run name.'
        )
    for other in [n for n, o in _open.items() if n != name and o.prompt != context.prompt_id]:
        _close_other(other, context.node_id)
    if held and not (held.trainer.usable() and held.trainer.made_with(base, adapter, settings)):
        if held.prompt == context.prompt_id:  # then what it was opened for is still to come
            raise ValueError(
                f'SRPO Trainer gets a list, and opens the run "{name}" again with other settings: give each entry a '
                "run name of its own."
            )
        close_trainer(name)
    if name in _open:
        trainer = _open[name].trainer
        trainer.take(base)
    else:
        trainer = Trainer(name, base, adapter, settings, start_from)
    _open[name] = _Open(trainer, context.prompt_id, context.node_id)
    return trainer


def _close_other(name: str, node: str):
    """What it holds in memory is not given up, and no other run need wait for it."""
    try:
        close_trainer(name)
    except RuntimeError as error:
        text = f'The run "{name}" could not be closed and stays open: {error}'
        log.warning("%s", text)
        show_text(text, node)


def begin_at(name: str, start_from: str, start_lora: str) -> bool:
    """Let a run that is new begin where another is, or was: "its name", or "its name@update" for a snapshot.

    For who holds the run's lock. Returns whether it does now: a run that has begun goes on instead. Raises ValueError
    for a run or snapshot that does not exist or is not whole, and where it shall begin at a LoRA too.
    """
    folder = run_folder(name)
    start_from = _text(start_from).strip()
    if not start_from or newest_state(folder) is not None:
        return False
    if start_lora != NO_LORA:
        raise ValueError(
            f'The run "{name}" can\'t begin both at "{start_from}" and at "{start_lora}": empty start_from, or set '
            f'start_lora to "{NO_LORA}".'
        )
    source, at, update = (part.strip() for part in start_from.partition("@"))
    check_run_name(source)
    if at and not re.fullmatch("[0-9]{1,15}", update):
        raise ValueError(f'"{start_from}" names no snapshot: write the run\'s name, "@" and an update, as in "toy@30".')
    if source in _open and _open[source].trainer.usable():
        _open[source].trainer.run.save()
    fork(run_folder(source), int(update) if update else None, folder)
    return True


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"start_from is {str(value)[:80]!r}: it must be a text, the name of a run.")
    return value


def trainer_of(model) -> Trainer | None:
    """The open trainer whose adapter this MODEL carries."""
    from .host.adapters.adapter import adapter_of

    adapter = adapter_of(model)
    return next((held.trainer for held in _open.values() if held.trainer.adapter is adapter), None)


def close_trainer(name: str):
    _open[name].trainer.close()
    del _open[name]  # one that could not be saved stays open


def state_of(name: str) -> tuple[str, int] | float:
    """Another value for each opening and each update of the run of this name.

    Where the run can't go on from memory it is never the same: what the host's cache kept of it is closed or lost.
    """
    held = _open.get(name)
    if held is None or not held.trainer.usable():
        return float("nan")  # a new one each time: the host compares what is the same object as equal
    return held.trainer.opening, held.trainer.run.updates
