"""What the inputs of SRPO Train make of a run: what it is trained on and with, and what it shows of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.protocols import Dataset, PhotoDataset, Shape
from ..srpo_core.algorithm.terms import Term, combine
from ..srpo_core.data.photo_latents import Photos
from ..srpo_core.language import say
from ..srpo_core.report.measures import FEW_STEPS
from ..srpo_core.rewards import Reward
from ..srpo_core.run.batch_check import held_against_singles, one_at_a_time
from ..srpo_core.run.draws import Batching, cond_of, draws_of
from ..srpo_core.run.loop import prepare_data
from ..srpo_core.run.training import Training
from .memory import plan_memory
from .mix import Mix
from .noise_levels import NoiseLevels
from .open_run import OpenRun
from .photos import for_model
from .previews import PreviewSettings, previewed, seeds_of
from .rollouts import Rollouts
from .watch import Watch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.flow_model import HostFlow
    from .host.memory_plan import MemoryPlan
    from .host.samples import FixedSamples


@dataclass(frozen=True, kw_only=True)
class TrainInputs:
    """The inputs of SRPO Train by their names, but for the run itself; those left open have their usual values."""

    dataset: Dataset
    vae: VAE
    reward: Reward
    objective: Objective
    updates: int
    width: int
    height: int
    batch: int
    seed: int
    guidance: float | None
    cfg: float
    negative: list | None
    memory: Mapping[str, Any]
    rollouts: Rollouts
    levels: NoiseLevels
    watch: Watch
    previews: PreviewSettings
    more_rewards: list[Term]
    gradient_vae: VAE | None

    def latent_shape(self, model: ModelPatcher, own: Rollouts | PreviewSettings) -> Shape:
        """That of rollouts or previews, which may have a size of their own. Raises ValueError, saying whose."""
        from .host.fitting import latent_shape

        try:
            return latent_shape(model, own.width or self.width, own.height or self.height)
        except ValueError as error:
            whose = "previews" if isinstance(own, PreviewSettings) else "rollouts"
            where = f"SRPO {whose.capitalize()}" if own.width or own.height else "SRPO Train"
            raise ValueError(f"{error} It is the size of the {whose}, set on {where}.") from None


def training_of(opened: OpenRun, inputs: TrainInputs, node: str) -> tuple[Training, str]:
    """What a run is to be trained on and with, and advice on memory, if there is any; what it draws is encoded already.

    node: says what does not fit.
    """
    from .host.decoder import HostDecoder
    from .host.memory_estimate import Workload
    from .host.references import check_takes_references

    model = opened.model
    terms = combine([Term(reward=inputs.reward, objective=inputs.objective), *inputs.more_rewards])
    dataset, photos, photo_share = parts_of(inputs.dataset, model)
    decoder = HostDecoder(inputs.gradient_vae or inputs.vae, model)
    batching = Batching(
        shape=inputs.latent_shape(model, inputs.rollouts),
        batch=inputs.batch,
        seed=inputs.seed,
        pairs=inputs.rollouts.pairs,
        reuse=inputs.rollouts.reuse,
        photo_share=photo_share,
        shared_noise=inputs.levels.shared_noise,
    )
    # All at once: text encoders take long to load.
    first = opened.run.updates
    also = [] if inputs.previews.dataset else previewed(dataset, inputs.previews.count)
    coming = range(first, first + inputs.updates)
    coming = range(first, prepare_data(coming, batching, dataset, photos=photos, also=also))
    workload = Workload(
        model=model,
        vae=decoder.vae,
        rewards=[term.reward for term in terms],
        cond=cond_of(draws_of(first, batching, dataset, photos)[:1]),  # which is encoded; another prompt may not be
        shape=largest_shape(batching.shape, dataset, photos),
        batch=batching.batch,
        asked_twice=inputs.cfg != 1,
    )
    plan = plan_memory(node, inputs.memory, workload)
    training = Training(
        flow=flow_of(model, inputs, plan, terms),
        decoder=decoder,
        terms=terms,
        dataset=dataset,
        batching=replace(batching, at_once=plan.use.at_once, sampled_at_once=plan.use.sampled_at_once),
        window=inputs.levels.trained_window(model, inputs.rollouts.sampling),
        photos=photos,
        guard=inputs.watch.guard,
    )
    for photo_data in (each for each in (dataset, photos) if isinstance(each, Photos)):
        check_takes_references(training.flow, photo_data, opened.run.checked)
    training, reason = held_against_singles(training, coming, opened.run.checked)
    alone = one_at_a_time(reason) if reason else ""
    told = [inputs.levels.about(model), plan.text, alone, on_few_steps(model, inputs, training)]
    return training, " ".join(filter(None, told))


def on_few_steps(model: ModelPatcher, inputs: TrainInputs, training: Training) -> str:
    """What there is to say where rollouts take few steps, as those of distilled models do; else empty."""
    from .host.windows import inside, shown_levels, visited

    sampling = inputs.rollouts.sampling
    if sampling.steps > FEW_STEPS or isinstance(training.dataset, PhotoDataset):
        return ""
    window = training.window
    levels = visited(model, sampling)
    notes = []
    if not inside(window, levels):
        notes.append(
            say(
                "The rollouts' steps begin at {levels} of noise, and none of these lies in the trained window, "
                "{high:.3f} to {low:.3f}: what is learned there may not reach pictures of {count} steps. Widen "
                "the window on SRPO Noise Levels.",
                levels=shown_levels(levels),
                high=window.sigma_max,
                low=window.sigma_min,
                count=sampling.steps,
            )
        )
    if cfg := next((cfg for cfg in (inputs.cfg, sampling.cfg) if cfg != 1), None):
        notes.append(
            say(
                "cfg is {cfg:g} and the rollouts take {count} steps: a model that was distilled to so few has its "
                "guidance in it, and is sampled with cfg 1.",
                cfg=cfg,
                count=sampling.steps,
            )
        )
    return " ".join(notes)


def largest_shape(rolled_out: Shape, dataset: Dataset, photos: PhotoDataset | None) -> Shape:
    """(C, H, W) of the largest latents that are trained: rollouts, or photos, which have a size of their own.

    The sizes of photos have about one area, so the first stands for all.
    """
    if isinstance(dataset, PhotoDataset):  # then nothing is rolled out
        return tuple(dataset.latents([0]).shape[1:])
    if photos is None:
        return rolled_out
    return max(rolled_out, tuple(photos.latents([0]).shape[1:]), key=math.prod)


def parts_of(dataset: Dataset, model: ModelPatcher) -> tuple[Dataset, PhotoDataset | None, float]:
    """The dataset, the photos that take the place of a share of it, and that share; of this MODEL's latents."""
    if isinstance(dataset, Mix):
        return dataset.of_prompts, for_model(dataset.photos, model), dataset.photo_share
    return for_model(dataset, model), None, 0.0


def flow_of(model: ModelPatcher, inputs: TrainInputs, plan: MemoryPlan, terms: Sequence[Term]) -> HostFlow:
    """The model as it is sampled and trained, in the memory that is planned for it."""
    from .host.flow_model import BlockSettings, HostFlow
    from .host.presets import preset_of

    use = plan.use
    compiled = inputs.memory.get("compile_blocks", False)
    blocks = BlockSettings(kept_blocks=use.kept_blocks, offload=use.offload, compiled=compiled)
    sampling = inputs.rollouts.sampling
    traced = any(term.trains and term.objective.route.traced for term in terms)
    if sampling.guidance is None and not traced:  # its own rollouts are the trained steps
        sampling = replace(sampling, guidance=preset_of(model).rollout_guidance)
    return HostFlow(
        model,
        sampling,
        inputs.guidance,
        cfg=inputs.cfg,
        negative=inputs.negative,
        edits=True,
        blocks=blocks,
        working=plan.working,
    )


def samples_of(inputs: TrainInputs, training: Training, model: ModelPatcher) -> FixedSamples:
    """The samples that the run shows of itself."""
    from .host.samples import FixedSamples

    previews = inputs.previews
    dataset = previews.dataset or training.dataset
    return FixedSamples(
        dataset=dataset,
        sampling=replace(previews.sampling, guidance=inputs.guidance, cfg=inputs.cfg),
        negative=inputs.negative,
        shape=inputs.latent_shape(model, previews),
        indices=previewed(dataset, previews.count),
        seeds=seeds_of(previews.seeds, previews.count),
        at_once=training.batching.at_once,
    )
