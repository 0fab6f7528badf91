"""How SRPO Train uses a GPU's memory: what the user chooses, and what becomes of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..srpo_core.language import say
from ..srpo_core.run.memory import AUTO, BY_HAND, CARDS, GB, MemoryUse
from .host.progress import show_text
from .inputs import settings_of

if TYPE_CHECKING:
    from .host.memory_estimate import Workload
    from .host.memory_plan import MemoryPlan

log = logging.getLogger(__name__)


def memory_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "memory",
        options=[
            io.DynamicCombo.Option(AUTO, []),
            *(io.DynamicCombo.Option(card, []) for card in CARDS),
            io.DynamicCombo.Option(BY_HAND, by_hand_inputs()),
        ],
        tooltip="How to use a GPU's memory: auto takes what is free; a size, no more than a card of that size has; by "
        "hand, as you set it.",
    )


def by_hand_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "at_once",
            default=MemoryUse.at_once,
            min=1,
            max=1024,
            tooltip="How many pictures share a trained forward; more needs more memory and gives the same result.",
        ),
        io.Int.Input(
            "sampled_at_once",
            default=MemoryUse.sampled_at_once,
            min=1,
            max=1024,
            advanced=True,
            tooltip="How many pictures of a batch are sampled together, if more than at_once: a GPU does so faster, "
            "above all where the model does not fit.",
        ),
        io.Int.Input(
            "kept_blocks",
            default=MemoryUse.kept_blocks,
            min=0,
            max=1000,
            advanced=True,
            tooltip="How many of the model's blocks keep their activations for the backward instead of computing them "
            "again: faster, where there is memory.",
        ),
        io.Boolean.Input(
            "offload",
            default=MemoryUse.offload,
            advanced=True,
            tooltip="Whether the inputs of the blocks wait for the backward in RAM: a little slower, but frees about 1 "
            "GB at 720x720.",
        ),
        io.Boolean.Input(
            "compile_blocks",
            default=False,
            advanced=True,
            tooltip="Whether torch.compile is used on the model's blocks, to sample and to train: experimental. It "
            "takes minutes at first, and needs the whole model on the GPU; where it fails, training goes on without.",
        ),
    ]


def unplanned(use: MemoryUse, error: Exception) -> str:
    """What is said where the estimate failed."""
    return say(
        "How much memory this takes could not be estimated ({error}). It goes on with pictures at once {at_once} and "
        "kept blocks {kept_blocks}.",
        error=f"{type(error).__name__}: {error}",
        at_once=use.at_once,
        kept_blocks=use.kept_blocks,
    )


def plan_memory(node: str, chosen: Mapping[str, Any], workload: Workload) -> MemoryPlan:
    """How to use memory for this workload.

    chosen: the value of `memory_input`. On a CPU all that is trained is in RAM already, and what is set by hand counts.
    Says in the log and on the node what does not fit. An estimate may be wrong, or not possible for a model, so it
    stops nobody.
    """
    from .host.memory_plan import MemoryPlan, plan

    by_hand = chosen["memory"] == BY_HAND
    use = settings_of(MemoryUse, chosen) if by_hand else MemoryUse()
    use = replace(use, at_once=min(use.at_once, workload.batch))
    if workload.model.load_device.type == "cpu":
        return MemoryPlan(use)
    try:
        planned = plan(chosen["memory"], use if by_hand else replace(use, at_once=0), workload)
    except Exception as error:
        planned = MemoryPlan(use, text=unplanned(use, error))
    use = planned.use
    log.info(
        "Memory: at_once %d, sampled_at_once %d, kept_blocks %d, offload %s; %.1f GB beside the weights.",
        use.at_once,
        use.sampled_at_once,
        use.kept_blocks,
        use.offload,
        (planned.working or math.nan) / GB,
    )
    if planned.text:
        log.warning("%s", planned.text)
        show_text(planned.text, node)
    return planned
