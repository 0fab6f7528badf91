"""How SRPO Train uses a GPU's memory: what the user chooses, and what becomes of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..srpo_core.run.memory import AUTO, BY_HAND, CARDS, GB, MemoryUse
from .host.progress import show_text
from .inputs import settings_of

if TYPE_CHECKING:
    from .host.memory_estimate import Workload
    from .host.memory_plan import MemoryPlan

log = logging.getLogger(__name__)


def memory_inputs() -> list:
    return [
        io.Combo.Input(
            "memory",
            options=[AUTO, *CARDS, BY_HAND],
            default=AUTO,
            optional=True,
            tooltip="On a GPU, how to use its memory: auto takes what is free; a size, no more than a card of that "
            "size has; by hand, kept_blocks and park_inputs as they are set here.",
        ),
        io.Boolean.Input(
            "park_inputs",
            default=MemoryUse.offload,
            optional=True,
            tooltip="The inputs of the blocks wait for the backward in RAM: a little slower, but frees about 1 GB at "
            "720x720.",
        ),
        io.Int.Input(
            "sampled_at_once",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="How many pictures of a batch are sampled together, if more than at_once: a GPU does so faster, "
            "above all where the model does not fit. On a GPU it is chosen for you, unless memory is 'by hand'.",
        ),
    ]


def memory_by_hand(*, at_once: int, batch: int, park_inputs: bool, **inputs: Any) -> MemoryUse:
    """What the inputs of SRPO Train set; kept_blocks and sampled_at_once are among the others."""
    return settings_of(MemoryUse, inputs, at_once=min(at_once, batch), offload=park_inputs)


def plan_memory(node: str, memory: str, by_hand: MemoryUse, workload: Workload) -> MemoryPlan:
    """How to use memory for this workload.

    memory: one of the options of its input. by_hand: what is set; an at_once of 0 is chosen on a GPU, and else 1.
    Says in the log and on the node what does not fit. An estimate may be wrong, or not possible for a model, so it
    stops nobody.
    """
    from .host.memory_plan import MemoryPlan, plan

    least = replace(by_hand, at_once=max(1, by_hand.at_once))
    if workload.model.load_device.type == "cpu":
        return MemoryPlan(least)  # all that is trained is in RAM already
    try:
        planned = plan(memory, least if memory == BY_HAND else by_hand, workload)
    except Exception as error:
        log.info("How much memory this takes could not be estimated (%s: %s).", type(error).__name__, error)
        return MemoryPlan(least)
    use = planned.use
    log.info(
        "Memory: at_once %d, kept_blocks %d, park_inputs %s, sampled_at_once %d; %.1f GB beside the weights.",
        use.at_once,
        use.kept_blocks,
        use.offload,
        use.sampled_at_once,
        planned.working / GB,
    )
    if planned.text:
        log.warning("%s", planned.text)
        show_text(planned.text, node)
    return planned
