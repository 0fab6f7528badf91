"""SRPO_Trainer: a named run, its adapter, and the MODEL as it is now."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..srpo_core.run.settings import DEFAULT
from .adapter_inputs import adapter_input, adapter_settings, start_input
from .checked import answer_of, checked
from .folders import check_run_name
from .host.progress import show_text
from .open_run import OpenRunSettings
from .open_runs import open_run, state_of
from .optimizer import Optimizer
from .sockets import CATEGORY, OptimizerType, TrainerType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)


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
            search_aliases=["lora training", "train lora", "fine-tune", "rlhf", "reinforcement learning", "srpo"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX or another flow model, as ComfyUI loaded it. It is not copied."),
                io.String.Input(
                    "run_name",
                    default="my-run",
                    tooltip="The name of the run and of its folder in output/srpo. The same name goes on; a new one "
                    "begins anew.",
                ),
                adapter_input(),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULT.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    tooltip="The step size of AdamW. Too much turns pictures to mush within some tens of updates.",
                ),
                start_input(),
                OptimizerType.Input(
                    "optimizer",
                    optional=True,
                    tooltip="How the run steps, averages and saves. Without it that is as published.",
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer", tooltip="The run, for SRPO Train or Train Step."),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the adapter as it is at this moment, also for nodes that save or merge "
                    "models; what is merged no longer follows it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None = None, *, adapter: Any = None, start: Any = None) -> bool | str:
        """The name alone: the host hands on the combos too, and what is keyword-only it checks itself."""
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
    def execute(
        cls,
        model: ModelPatcher,
        run_name: str,
        adapter: dict[str, Any],
        learning_rate: float,
        start: dict[str, Any],
        optimizer: Optimizer | None,
    ) -> io.NodeOutput:
        optimizer = optimizer or Optimizer()
        settings = OpenRunSettings(
            run=replace(optimizer.run, learning_rate=learning_rate),
            adapter=adapter_settings(adapter, start, optimizer.precision),
            start_from=start.get("start_from"),
        )
        trainer = open_run(run_name, model, settings)
        if trainer.run.updates:
            log.info('The run "%s" goes on after update %d.', run_name, trainer.run.updates)
        if trainer.left_out and not trainer.run.updates:
            log.warning("%s", trainer.left_out)
            show_text(trainer.left_out, cls.hidden.unique_id)
        return io.NodeOutput(trainer, trainer.model)
