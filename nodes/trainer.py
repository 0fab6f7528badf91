"""SRPO_Trainer: a named run, its adapter, and the MODEL as it is now."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from filelock import FileLock, Timeout

from ..srpo_core.files import write_whole
from ..srpo_core.optimizers import OPTIMIZERS
from ..srpo_core.run import Run, Settings, branch, saved_updates
from .kinds import CATEGORY, TrainerType

log = logging.getLogger(__name__)

KINDS = ["LoRA", "LoKr"]  # The host's LoHa has no trainable forward; its OFT also turns biases, which its files can't.
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


DEFAULT = Settings()


@dataclass(frozen=True)
class AdapterSettings:
    kind: str
    rank: int
    alpha: float
    seed: int


class Trainer:
    """An open run on a MODEL.

    base, model: the MODEL without and with the adapter. run: the core's Run.
    """

    def __init__(self, name: str, base, adapter: AdapterSettings, settings: Settings):
        from .host.adapter import Adapter

        self.name, self.base, self.adapter_settings = name, base, adapter
        self.adapter = Adapter(base, adapter.kind, adapter.rank, adapter.alpha, adapter.seed)
        self.lock = _lock(name)
        try:
            identity = {"adapter": adapter.kind, "rank": str(adapter.rank), "alpha": str(adapter.alpha)}
            self.run = Run(run_folder(name), self.adapter.parameters, settings, identity)
        except BaseException:
            self.lock.release()
            raise
        self.model = self.adapter.attach(base)

    def made_with(self, base, adapter: AdapterSettings, settings: Settings) -> bool:
        same_model = self.base.model is base.model and self.base.patches_uuid == base.patches_uuid
        return same_model and self.adapter_settings == adapter and self.run.settings == settings

    def close(self):
        self.run.save()
        self.lock.release()

    def save_lora(self) -> Path:
        """Write the adapter as it is now to where the host's LoRA loaders look; returns the file.

        With a moving average that is written too, beside it.
        """
        file = lora_folder(self.name) / f"{self.name}_{self.run.updates:06d}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._write_lora(file)
        if self.run.ema:
            with self.run.averaged():
                self._write_lora(file.with_stem(f"{file.stem}_ema"))
        return file

    def _write_lora(self, file: Path):
        metadata = {"srpo_updates": str(self.run.updates)}
        write_whole(file, lambda path: comfy.utils.save_torch_file(self.adapter.state_dict(), str(path), metadata))


@dataclass
class _Open:
    trainer: Trainer
    prompt: str  # which queued prompt, and which node of it, has the run
    node: str


_open: dict[str, _Open] = {}


def open_trainer(name: str, base, adapter: AdapterSettings, settings: Settings) -> Trainer:
    """The run of this name: as it is open already, else from its folder, else new.

    Runs that only earlier prompts used are saved and closed: each holds memory.
    Raises ValueError for a name that is taken by another node of this prompt or by another ComfyUI.
    """
    check_run_name(name)
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
    trainer = _open[name].trainer if name in _open else Trainer(name, base, adapter, settings)
    _open[name] = _Open(trainer, context.prompt_id, context.node_id)
    return trainer


def begin_at(name: str, start_from: str):
    """Let a run that is new begin where another is, or was: "its name", or "its name@update" for a snapshot.

    Raises ValueError for a run or snapshot that does not exist. A run that has begun goes on instead.
    """
    if not start_from.strip() or name in _open or saved_updates(run_folder(name)):
        return
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
    _open.pop(name).trainer.close()


def run_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "srpo" / name


def lora_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "loras" / "srpo" / name


def check_run_name(name: str):
    """Raises ValueError unless the name can be a folder's on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", name) or name[-1] in " .":
        raise ValueError(
            f'"{name}" can\'t be a run name: use up to 64 letters, digits, spaces, dots, dashes or underscores, '
            "beginning with a letter or digit. It becomes a folder in output/srpo."
        )
    if name.split(".")[0].lower() in RESERVED:
        raise ValueError(f'"{name}" can\'t be a run name: Windows keeps it for itself. Choose another.')


def _lock(name: str) -> FileLock:
    folder = run_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f'The run "{name}" is open in another ComfyUI: close that one, or choose another run name.'
        ) from None
    return lock


class TrainerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Trainer",
            display_name="SRPO Trainer",
            category=CATEGORY,
            not_idempotent=True,
            description="Puts a trainable adapter on the model and opens a run. A run of the same name goes on where "
            "it stopped, also after a restart.",
            inputs=[
                io.Model.Input("model", tooltip="FLUX or another flow model, as ComfyUI loaded it. It is not copied."),
                io.String.Input(
                    "run_name",
                    default="my-run",
                    tooltip="Names the folder output/srpo/<run name>. The same name goes on; a new name begins anew.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=KINDS,
                    default="LoRA",
                    tooltip="What is trained; LoRA fits most. For LoKr the rank is its factor.",
                ),
                io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Size of the adapter; 16 suits SRPO."),
                io.Float.Input(
                    "alpha",
                    default=16.0,
                    min=0.01,
                    max=1024.0,
                    step=0.01,
                    tooltip="Strength of the adapter, divided by the rank. The same number as the rank means 1.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    tooltip="AdamW's step size. Too much turns pictures to mush within some tens of updates.",
                ),
                io.Float.Input("weight_decay", default=1e-4, min=0.0, max=1.0, step=1e-6, tooltip="AdamW's decay."),
                io.Float.Input(
                    "max_gradient_norm",
                    default=0.1,
                    min=1e-6,
                    max=1000.0,
                    step=0.01,
                    tooltip="Larger gradients of an update are scaled down to this norm.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Of the adapter's random start.",
                ),
                io.Int.Input(
                    "save_every",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="Updates between two saves of the run and, with Train Step, of its LoRA.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=DEFAULT.optimizer,
                    optional=True,
                    tooltip="AdamW as published. The others need a package each; for Prodigy the learning rate is 1.",
                ),
                io.Int.Input(
                    "warmup",
                    default=DEFAULT.warmup,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Updates over which the learning rate rises from 0.",
                ),
                io.Int.Input(
                    "cosine_to",
                    default=DEFAULT.cosine_to,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="The update at which the learning rate has fallen to 0, along a cosine. 0: it stays, as "
                    "published.",
                ),
                io.Float.Input(
                    "ema",
                    default=DEFAULT.ema,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=False,
                    optional=True,
                    tooltip="Decay of a moving average of the adapter, which the previews and a second LoRA then show. "
                    "0: none. 0.9 suits short runs.",
                ),
                io.Int.Input(
                    "snapshot_every",
                    default=DEFAULT.snapshot_every,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Updates between two snapshots to start other runs from, each with its LoRA. 0: none.",
                ),
                io.Int.Input(
                    "keep_snapshots",
                    default=DEFAULT.keep_snapshots,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="How many of the last snapshots are kept, beside the one with the best words-gap.",
                ),
                io.String.Input(
                    "start_from",
                    default="",
                    optional=True,
                    tooltip='For a new run: another run to begin at, as in "toy", or one of its snapshots, "toy@30".',
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer"),
                io.Model.Output(display_name="model", tooltip="The model with the adapter as it is at this moment."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name=None):
        if run_name is not None:
            try:
                check_run_name(run_name)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run_name="", **_):
        """Changes with every update, so that queueing again goes on instead of doing nothing."""
        check_run_name(run_name)
        held = _open.get(run_name)
        return (held is not None, held.trainer.run.updates if held else saved_updates(run_folder(run_name)))

    @classmethod
    def execute(
        cls,
        model,
        run_name,
        adapter,
        rank,
        alpha,
        learning_rate,
        weight_decay,
        max_gradient_norm,
        seed,
        save_every,
        optimizer=DEFAULT.optimizer,
        warmup=DEFAULT.warmup,
        cosine_to=DEFAULT.cosine_to,
        ema=DEFAULT.ema,
        snapshot_every=DEFAULT.snapshot_every,
        keep_snapshots=DEFAULT.keep_snapshots,
        start_from="",
    ) -> io.NodeOutput:
        settings = Settings(
            learning_rate,
            weight_decay,
            max_gradient_norm,
            save_every,
            optimizer,
            warmup,
            cosine_to,
            ema,
            snapshot_every,
            keep_snapshots,
        )
        begin_at(run_name, start_from)
        trainer = open_trainer(run_name, model, AdapterSettings(adapter, rank, alpha, seed), settings)
        if trainer.run.updates:
            log.info('The run "%s" goes on after update %d.', run_name, trainer.run.updates)
        return io.NodeOutput(trainer, trainer.model)
