"""SRPO_Trainer: a named run, its adapter, and the MODEL as it is now."""

import logging

import folder_paths
from comfy_api.latest import io

from ..srpo_core.run.optimizers import OPTIMIZERS
from ..srpo_core.run.settings import Settings
from .checked import checked
from .folders import check_run_name
from .host.adapters.targets import TARGETS
from .host.progress import show_text
from .runs import NO_LORA, AdapterSettings, open_trainer, state_of
from .sockets import CATEGORY, TrainerType

log = logging.getLogger(__name__)

KINDS = ["LoRA", "LoKr", "LoHa", "OFT", "full"]
PRECISIONS = ["fp32", "bf16"]
DEFAULT = Settings()


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
                    options=KINDS,
                    default="LoRA",
                    tooltip="What is trained; LoRA fits most. For LoKr the rank is its factor, for OFT its block size; "
                    "full trains the whole layers.",
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
                io.Combo.Input(
                    "target",
                    options=list(TARGETS),
                    default="all",
                    optional=True,
                    tooltip="Which layers of the model are trained.",
                ),
                io.Combo.Input(
                    "start_lora",
                    options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=NO_LORA,
                    optional=True,
                    tooltip="For a new run: a LoRA file to begin at, of this model and of trained layers alone.",
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default="fp32",
                    optional=True,
                    tooltip="Of what is trained. bf16 takes half the memory, and wants the AdamW with Kahan sums.",
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
    def validate_inputs(cls, run_name=None):
        if run_name is not None:
            try:
                check_run_name(run_name)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run_name=None, **_):
        """Changes with every update, so that queueing again goes on instead of doing nothing.

        Always, where the run is not open, or its name is linked and so not known yet.
        """
        if run_name is None:
            return float("nan")  # a new one each time: the host compares what is the same object as equal
        check_run_name(run_name)
        return state_of(run_name)

    @classmethod
    @checked
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
        target="all",
        start_lora=NO_LORA,
        precision="fp32",
    ) -> io.NodeOutput:
        settings = Settings(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_gradient_norm=max_gradient_norm,
            save_every=save_every,
            optimizer=optimizer,
            warmup=warmup,
            cosine_to=cosine_to,
            ema=ema,
            snapshot_every=snapshot_every,
            keep_snapshots=keep_snapshots,
        )
        trained = AdapterSettings(adapter, rank, alpha, seed, target, start_lora, precision)
        trainer = open_trainer(run_name, model, trained, settings, start_from)
        if trainer.run.updates:
            log.info('The run "%s" goes on after update %d.', run_name, trainer.run.updates)
        if trainer.left_out and not trainer.run.updates:
            log.warning("%s", trainer.left_out)
            show_text(trainer.left_out, cls.hidden.unique_id)
        return io.NodeOutput(trainer, trainer.model)
