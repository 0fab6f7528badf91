"""SRPO_Optimizer: how a run steps, averages and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..srpo_core.run.optimizers import OPTIMIZERS
from ..srpo_core.run.settings import DEFAULT, Settings
from .checked import checked
from .host.adapters.settings import PRECISIONS, AdapterSettings
from .inputs import settings_of
from .sockets import CATEGORY, OptimizerType


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a run steps, and the type of what it trains. run: but for the learning rate, which is SRPO Trainer's."""

    run: Settings = DEFAULT
    precision: str = AdapterSettings.precision


class OptimizerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Optimizer",
            display_name="SRPO Optimizer",
            category=CATEGORY,
            description="How SRPO Trainer steps, averages and saves. Without this node it is AdamW as published.",
            search_aliases=["adamw", "prodigy", "8bit", "ema", "learning rate schedule", "warmup", "snapshots", "srpo"],
            inputs=[
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=DEFAULT.optimizer,
                    tooltip="The optimizer: AdamW as published. The others need a package each; for Prodigy the "
                    "learning rate is 1.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=DEFAULT.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    tooltip="The decay of what is trained, as AdamW takes it.",
                ),
                io.Float.Input(
                    "max_gradient_norm",
                    default=DEFAULT.max_gradient_norm,
                    min=1e-6,
                    max=1000.0,
                    step=0.001,
                    tooltip="The norm to which larger gradients of an update are scaled down.",
                ),
                io.Int.Input(
                    "warmup",
                    default=DEFAULT.warmup,
                    min=0,
                    max=10000,
                    tooltip="How many updates the learning rate takes to rise from 0.",
                ),
                io.Int.Input(
                    "cosine_to",
                    default=DEFAULT.cosine_to,
                    min=0,
                    max=100000,
                    tooltip="The update after which the learning rate is 0; it falls along a cosine. With 0 it "
                    "stays, as published.",
                ),
                io.Float.Input(
                    "ema",
                    default=DEFAULT.ema,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=False,
                    tooltip="The decay of a moving average of the adapter, which the previews and a second LoRA then "
                    "show. 0 is none; 0.9 suits short runs.",
                ),
                io.Int.Input(
                    "save_every",
                    default=DEFAULT.save_every,
                    min=1,
                    max=1000,
                    tooltip="How many updates lie between two saves of the run; at the end it is saved in any case.",
                ),
                io.Int.Input(
                    "snapshot_every",
                    default=DEFAULT.snapshot_every,
                    min=0,
                    max=10000,
                    tooltip="How many updates lie between two snapshots to start other runs from, each with its LoRA; "
                    "0 is none.",
                ),
                io.Int.Input(
                    "keep_snapshots",
                    default=DEFAULT.keep_snapshots,
                    min=1,
                    max=1000,
                    tooltip="How many of the last snapshots are kept, beside the one with the best words-gap.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AdapterSettings.precision,
                    tooltip="The type of what is trained. bf16 halves its memory, and wants the AdamW with Kahan sums.",
                ),
            ],
            outputs=[OptimizerType.Output(display_name="optimizer", tooltip="These settings, for SRPO Trainer.")],
        )

    @classmethod
    @checked
    def execute(cls, precision: str, **inputs: Any) -> io.NodeOutput:
        run = settings_of(Settings, inputs, learning_rate=DEFAULT.learning_rate)
        return io.NodeOutput(Optimizer(run=run, precision=precision))
