"""How a run uses the memory of a device: what is fastest there, and what to say where nothing fits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import comfy.model_management
import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy.taesd.taesd import TAESD

from ...srpo_core.language import say
from ...srpo_core.run.memory import (
    BY_HAND,
    CARDS,
    MemoryUse,
    StageBytes,
    advice,
    fastest,
    most_missing,
    sampled_together,
)
from .adapters.adapter import Adapter
from .adapters.readable import adapter_of
from .decoder import scaled, tiny_vae
from .fitting import token_side
from .gradients.differentiable import BlockSettings, blocks
from .memory_estimate import Workload, estimate

SMALLER = (0.85, 0.7, 0.5)  # of each side: sizes to try where the chosen one is too much


class MemoryPlan(NamedTuple):
    """How a run uses memory.

    working: bytes for the branch that the host should leave free of weights, None where they are not known. text: what
    does not fit, or empty.
    """

    use: MemoryUse
    working: int | None = None
    text: str = ""


def plan(memory: str, by_hand: MemoryUse, workload: Workload) -> MemoryPlan:
    """How a run uses the device: as set, or as is fastest in the memory that is free, or that a card of a size has.

    memory: BY_HAND, AUTO, or a key of CARDS. by_hand: what is set; the others take its at_once as the most, and
    choose it where it is 0.
    """
    patcher = workload.model
    free = _free(patcher)
    budget = min(free, CARDS.get(memory, free))

    @cache  # each takes seconds
    def needs_with(use: MemoryUse, workload: Workload = workload) -> dict[str, StageBytes]:
        return estimate(workload, use.at_once, BlockSettings(kept_blocks=use.kept_blocks, offload=use.offload))

    use = by_hand
    if memory != BY_HAND:
        count = sum(1 for _ in blocks(patcher.model.diffusion_model))
        use = fastest(needs_with, at_once=by_hand.at_once, batch=workload.batch, blocks=count, budget=budget)
    needs = needs_with(use)
    there = 3 * _size(adapter_of(patcher))  # parameters and moments, which the host sees are taken
    if memory != BY_HAND:
        together = sampled_together(needs["rollout"], there, at_once=use.at_once, batch=workload.batch, budget=budget)
        use = replace(use, sampled_at_once=together)
    text = advice(needs, budget, _remedies(needs_with, use, workload, budget))
    return MemoryPlan(use, needs["branch"].working - there + free - budget, text)


def _free(patcher: ModelPatcher) -> int:
    """Bytes of the device that a run of this model can have: the host makes room, and the adapter is there already."""
    device = patcher.load_device
    loaded = [held for held in comfy.model_management.current_loaded_models if held.device == device]
    free = comfy.model_management.get_free_memory(device) - comfy.model_management.extra_reserved_memory()
    return free + sum(held.model_loaded_memory() for held in loaded) + _size(adapter_of(patcher))


def _remedies(
    needs_with: Callable, use: MemoryUse, workload: Workload, budget: float
) -> Iterator[tuple[str, dict[str, StageBytes]]]:
    """What to set where something does not fit, and what is needed then: see `advice`."""
    vae = workload.vae
    shape = workload.shape
    adapter = adapter_of(workload.model)
    if use.kept_blocks:
        use = replace(use, kept_blocks=0)
        yield say("no kept_blocks"), needs_with(use)
    if not use.offload:
        use = replace(use, offload=True)
        yield say("offload (memory by hand)"), needs_with(use)
    if use.at_once > 1:
        use = replace(use, at_once=1)
        yield say("at_once 1"), needs_with(use)
    for share in SMALLER:
        smaller = *shape[:-2], *scaled(shape, share, token_side(workload.model))
        needs = needs_with(use, replace(workload, shape=smaller))
        if most_missing(needs, budget)[1] <= 0:
            break
    ratio = vae.spacial_compression_decode()
    yield f"{ratio * smaller[-1]}x{ratio * smaller[-2]}", needs
    latent_format = workload.model.get_model_object("latent_format")
    if (name := tiny_vae(latent_format, vae)) and "decode" in needs:
        tiny = comfy.sd.VAE(sd=TAESD(latent_channels=shape[0]).state_dict())
        needs = needs_with(use, replace(workload, vae=tiny, shape=smaller))
        yield say("{name} as the VAE of the gradient", name=name), needs
    if adapter.settings.kind == "LoRA" and (rank := next(iter(adapter.modules.values())).rank) >= 4:
        less = 3 * _size(adapter)  # three quarters of what is there four times
        needs = {name: StageBytes(need.weights, need.working - less) for name, need in needs.items()}
        yield say("rank {rank}", rank=rank // 4), needs


def _size(adapter: Adapter) -> int:
    return sum(parameter.nbytes for parameter in adapter.parameters.values())
