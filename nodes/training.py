"""What the inputs of SRPO Train make of a run: what it is trained on and with, and where it ends.

Functions name the inputs that they read, and leave the others be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..srpo_core.algorithm.guard import Guard
from ..srpo_core.algorithm.noise_levels import Window
from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.protocols import Dataset, PhotoDataset
from ..srpo_core.algorithm.terms import Term, combine
from ..srpo_core.rewards import Reward
from ..srpo_core.run.draws import Batching
from ..srpo_core.run.loop import prepare_data
from ..srpo_core.run.training import Training
from ..srpo_core.run.watch import Limits
from .host.sampling import Sampling
from .inputs import settings_of
from .memory import memory_by_hand, plan_memory
from .open_run import OpenRun
from .photos import for_model
from .previews import previewed

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.flow_model import HostFlow
    from .host.memory_plan import MemoryPlan


def limits_of(
    *, words_gap_limit: float, saturation_limit: float, watching_limit: float, velocity_limit: float, **_: Any
) -> Limits:
    return Limits(
        words_gap=words_gap_limit, saturation=saturation_limit, watching=watching_limit, velocity=velocity_limit
    )


def training_of(
    opened: OpenRun,
    updates: int,
    node: str,
    *,
    also_encoded: int,
    dataset: Dataset,
    photos: PhotoDataset | None,
    reward: Reward,
    objective: Objective,
    more_rewards: list[Term] | None,
    vae: VAE,
    gradient_vae: VAE | None,
    width: int,
    height: int,
    memory: str,
    **inputs: Any,
) -> Training:
    """What the inputs of SRPO Train say that a run is to be trained on and with; what it draws is encoded already.

    also_encoded: how many previews the dataset has, whose prompts are encoded with the others.
    """
    from .host.decoder import HostDecoder
    from .host.flow_model import latent_shape
    from .host.memory_estimate import Workload

    model = opened.model
    window = settings_of(Window, inputs)
    terms = combine([Term(reward=reward, objective=objective), *(more_rewards or ())])
    dataset = for_model(dataset, model)
    photos = for_model(photos, model)
    shape = latent_shape(model, width, height)
    decoder = HostDecoder(gradient_vae or vae, model)
    batching = settings_of(Batching, inputs, shape=shape, at_once=1, sampled_at_once=1)
    # All at once: text encoders take long to load.
    first = opened.run.updates
    also = previewed(dataset, also_encoded)
    prepare_data(range(first, first + updates), batching, dataset, photos=photos, also=also)
    rewards = [term.reward for term in terms]
    workload = Workload(
        model=model, vae=decoder.vae, rewards=rewards, dataset=dataset, shape=shape, batch=batching.batch
    )
    plan = plan_memory(node, memory, memory_by_hand(**inputs), workload)
    return Training(
        flow=flow_of(model, plan, **inputs),
        decoder=decoder,
        terms=terms,
        dataset=dataset,
        batching=replace(batching, at_once=plan.use.at_once, sampled_at_once=plan.use.sampled_at_once),
        window=window,
        photos=photos,
        guard=guard_of(**inputs),
    )


def flow_of(
    model: ModelPatcher,
    plan: MemoryPlan,
    *,
    guidance: float,
    rollout_guidance: float,
    compile_blocks: bool,
    **inputs: Any,
) -> HostFlow:
    """The model as it is sampled and trained, in the memory that is planned for it."""
    from .host.flow_model import BlockSettings, HostFlow

    sampling = settings_of(Sampling, inputs, guidance=rollout_guidance)
    use = plan.use
    blocks = BlockSettings(kept_blocks=use.kept_blocks, offload=use.offload, compiled=compile_blocks)
    return HostFlow(model, sampling, guidance, blocks=blocks, working=plan.working)


def guard_of(*, norm_guard: float, frozen_pull: float, **_: Any) -> Guard:
    return Guard(norm_weight=norm_guard, distance_weight=frozen_pull)
