"""SRPO_Trainer: a named run, its adapter, and the MODEL as it is now."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from ..srpo_core.run.optimizers import OPTIMIZERS
from ..srpo_core.run.settings import DEFAULT, Settings
from .checked import answer_of, checked
from .folders import check_run_name
from .host.adapters.settings import KINDS, NO_LORA, PRECISIONS, AdapterSettings
from .host.adapters.targets import TARGETS
from .host.progress import show_text
from .inputs import settings_of
from .open_run import OpenRunSettings
from .open_runs import open_run, state_of
from .sockets import CATEGORY, TrainerType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)

ADAPTER = AdapterSettings()


class TrainerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Trainer",
            display_name="SRPO Trainer",
            category=CATEGORY,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
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
                    options=list(KINDS),
                    default=ADAPTER.kind,
                    tooltip="What is trained; LoRA fits most. For LoKr the rank is its factor, for OFT its block size; "
                    "full trains the whole layers.",
                ),
                io.Int.Input(
                    "rank", default=ADAPTER.rank, min=1, max=1024, tooltip="Size of the adapter; 16 suits SRPO."
                ),
                io.Float.Input(
                    "alpha",
                    default=ADAPTER.alpha,
                    min=0.01,
                    max=1024.0,
                    step=0.01,
                    tooltip="Strength of the adapter, divided by the rank. The same number as the rank means 1.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULT.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    tooltip="AdamW's step size. Too much turns pictures to mush within some tens of updates.",
                ),
                io.Float.Input(
                    "weight_decay", default=DEFAULT.weight_decay, min=0.0, max=1.0, step=1e-6, tooltip="AdamW's decay."
                ),
                io.Float.Input(
                    "max_gradient_norm",
                    default=DEFAULT.max_gradient_norm,
                    min=1e-6,
                    max=1000.0,
                    step=0.01,
                    tooltip="Larger gradients of an update are scaled down to this norm.",
                ),
                io.Int.Input(
                    "seed",
                    default=ADAPTER.seed,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="The seed of the adapter's random start.",
                ),
                io.Int.Input(
                    "save_every",
                    default=DEFAULT.save_every,
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
                    tooltip="The update after which the learning rate is 0; it falls along a cosine. 0: it stays, as "
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
                    default=OpenRunSettings.start_from,
                    optional=True,
                    tooltip='For a new run: another run to begin at, as in "toy", or one of its snapshots, "toy@30".',
                ),
                io.Combo.Input(
                    "target",
                    options=list(TARGETS),
                    default=ADAPTER.target,
                    optional=True,
                    tooltip="Which layers of the model are trained.",
                ),
                io.Combo.Input(
                    "start_lora",
                    options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=ADAPTER.start_lora,
                    optional=True,
                    tooltip="For a new run: a LoRA file to begin at, of this model and of trained layers alone.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=ADAPTER.precision,
                    optional=True,
                    tooltip="The type of what is trained. bf16 halves its memory, and wants the AdamW with Kahan sums.",
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer"),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the adapter as it is at this moment, also for nodes that save or merge "
                    "models; what is merged no longer follows it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None = None) -> bool | str:
        return True if run_name is None else answer_of(check_run_name, run_name)

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None = None, **_: Any) -> tuple[str, int] | float:
        """Changes with every update, so that queueing again goes on instead of doing nothing.

        Always, where the run is not open, or its name is linked and so not known yet.
        """
        if run_name is None:
            return float("nan")  # a new one each time: the host compares what is the same object as equal
        check_run_name(run_name)
        return state_of(run_name)

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, run_name: str, adapter: str, start_from: str, **inputs: Any) -> io.NodeOutput:
        settings = OpenRunSettings(
            run=settings_of(Settings, inputs),
            adapter=settings_of(AdapterSettings, inputs, kind=adapter),
            start_from=start_from,
        )
        trainer = open_run(run_name, model, settings)
        if trainer.run.updates:
            log.info('The run "%s" goes on after update %d.', run_name, trainer.run.updates)
        if trainer.left_out and not trainer.run.updates:
            log.warning("%s", trainer.left_out)
            show_text(trainer.left_out, cls.hidden.unique_id)
        return io.NodeOutput(trainer, trainer.model)
