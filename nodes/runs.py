"""The runs that are open in this ComfyUI, by name: each an adapter on a MODEL and the core's Run."""

from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_execution.utils import get_executing_context
from filelock import FileLock, Timeout

from ..srpo_core.checks import check_number, check_whole
from ..srpo_core.files import check_writable, write_whole
from ..srpo_core.run import Run, Settings
from ..srpo_core.run_folder import branch, saved_updates
from .folders import check_run_name, lora_folder, model_folder, run_folder

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
        """What a run can't change. Older runs name no target and no precision: theirs are the defaults."""
        chosen = [choice for choice in (self.target, self.precision) if choice not in ("all", "fp32")]
        kind = {"adapter": f"{self.kind} ({', '.join(chosen)})" if chosen else self.kind}
        return kind if self.whole_layers else kind | {"rank": str(self.rank), "alpha": str(self.alpha)}


class Trainer:
    """An open run on a MODEL.

    base, model: the MODEL without and with the adapter. run: the core's Run.
    """

    def __init__(self, name: str, base, adapter: AdapterSettings, settings: Settings):
        from .host.adapter import Adapter

        self.name, self.base, self.adapter_settings = name, base, adapter
        self.adapter = Adapter(
            base, adapter.kind, adapter.rank, adapter.alpha, adapter.seed, adapter.target, adapter.precision
        )
        self.lock = _lock(name)
        try:
            check_writable(self._folder)
            self._start()
            self.run = Run(run_folder(name), self.adapter.parameters, settings, adapter.identity())
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
        self.base, self.model = base, self.adapter.attach(base)

    def close(self):
        self.run.save()
        self.lock.release()

    @property
    def _folder(self) -> Path:
        return model_folder(self.name) if self.adapter_settings.whole_layers else lora_folder(self.name)

    def _start(self):
        from .host.start_lora import start_at

        name = self.adapter_settings.start_lora
        if name != NO_LORA and not saved_updates(run_folder(self.name)):
            start_at(self.adapter, self.base.model, Path(folder_paths.get_full_path_or_raise("loras", name)))

    def save_lora(self) -> Path:
        """Write the adapter as it is now to where the host's LoRA loaders look; returns the file.

        Where whole layers are trained it is the model, for the host's model loader, and its older files are deleted.
        With a moving average that is written too, beside it.
        """
        file = self._folder / f"{self.name}_{self.run.updates:06d}.safetensors"
        average = file.with_stem(f"{file.stem}_ema")
        self._write(file)
        if self.run.ema:
            with self.run.averaged():
                self._write(average)
        if self.adapter_settings.whole_layers:
            for older in set(self._folder.glob(f"{self.name}_[0-9]*.safetensors")) - {file, average}:
                older.unlink()
        return file

    def _write(self, file: Path):
        from .host.adapter import save_model

        metadata = {"srpo_updates": str(self.run.updates)}
        kept = self.run.kept()
        if self.adapter_settings.whole_layers:
            write_whole(file, lambda path: save_model(self.base, self.adapter, path, metadata), kept)
        else:
            state = self.adapter.state_dict()
            write_whole(file, lambda path: comfy.utils.save_torch_file(state, str(path), metadata), kept)


def _check_carries_none(model):
    """Two runs on one MODEL would each train on top of what the other is doing at that moment."""
    from .host.adapter import adapter_of

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


def open_trainer(name: str, base, adapter: AdapterSettings, settings: Settings) -> Trainer:
    """The run of this name: as it is open already, else from its folder, else new.

    Runs that only earlier prompts used are saved and closed: each holds memory.
    Raises ValueError for a name that is taken by another node of this prompt or by another ComfyUI, and for a MODEL
    that carries a run's adapter already.
    """
    check_run_name(name)
    _check_carries_none(base)
    context = get_executing_context()
    held = _open.get(name)
    if held and held.prompt == context.prompt_id and held.node != context.node_id:
        raise ValueError(
            f'Two SRPO Trainers of this workflow train the run "{name}" at once: give one of them another run name.'
        )
    for other in [n for n, o in _open.items() if n != name and o.prompt != context.prompt_id]:
        close_trainer(other)
    if held and not held.trainer.made_with(base, adapter, settings):
        close_trainer(name)
    if name in _open:
        trainer = _open[name].trainer
        trainer.take(base)
    else:
        trainer = Trainer(name, base, adapter, settings)
    _open[name] = _Open(trainer, context.prompt_id, context.node_id)
    return trainer


def begin_at(name: str, start_from: str, start_lora: str):
    """Let a run that is new begin where another is, or was: "its name", or "its name@update" for a snapshot.

    Raises ValueError for a run or snapshot that does not exist, and where it shall begin at a LoRA too. A run that
    has begun goes on instead.
    """
    if not start_from.strip() or name in _open or saved_updates(run_folder(name)):
        return
    if start_lora != NO_LORA:
        raise ValueError(
            f'The run "{name}" can\'t begin both at "{start_from}" and at "{start_lora}": empty start_from, or set '
            f'start_lora to "{NO_LORA}".'
        )
    source, _, update = (part.strip() for part in start_from.partition("@"))
    check_run_name(source)
    if update and not update.isdigit():
        raise ValueError(f'"{start_from}" names no snapshot: write the run\'s name, "@" and an update, as in "toy@30".')
    if source in _open:
        _open[source].trainer.run.save()
    branch(run_folder(source), int(update) if update else None, run_folder(name))


def trainer_of(model) -> Trainer | None:
    """The open trainer whose adapter this MODEL carries."""
    from .host.adapter import adapter_of

    adapter = adapter_of(model)
    return next((held.trainer for held in _open.values() if held.trainer.adapter is adapter), None)


def close_trainer(name: str):
    _open[name].trainer.close()
    del _open[name]  # one that could not be saved stays open


def updates_of(name: str) -> tuple[bool, int]:
    """Whether the run of this name is open, and how many updates it has made."""
    held = _open.get(name)
    return (held is not None, held.trainer.run.updates if held else saved_updates(run_folder(name)))


def _lock(name: str) -> FileLock:
    folder = run_folder(name)
    check_writable(folder)
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f'The run "{name}" is open in another ComfyUI: close that one, or choose another run name.'
        ) from None
    return lock
