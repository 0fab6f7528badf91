"""SRPO_Compare: the same pictures by two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.latest import io

from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.protocols import Dataset
from ..srpo_core.language import plural
from ..srpo_core.pictures import to_tensor
from ..srpo_core.report.compare import Comparison, ManySteps, score_pictures
from ..srpo_core.report.compare_picture import draw_comparison
from ..srpo_core.rewards import Reward
from .checked import checked
from .host.progress import Progress, show_text
from .host.sampling import Sampling
from .inputs import asked_guidance, check_asked, guidance_inputs, negative_input, size_inputs
from .outputs import preview, summary_output
from .previews import PreviewSettings
from .sockets import CATEGORY, DatasetType, ObjectiveType, PreviewsType, RewardModelType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.samples import FixedSamples, Sampled


def check_models(before: ModelPatcher, after: ModelPatcher, vae: VAE):
    """Raises ValueError for models of two kinds, whose pictures can't share noise, and for a VAE that isn't theirs."""
    from .host.decoder import HostDecoder

    one, other = (
        f"{type(model.model).__name__} with {type(model.get_model_object('latent_format')).__name__} latents"
        for model in (before, after)
    )
    if one != other:
        raise ValueError(
            f"The model before is {one}, the model after {other}: their pictures can't come from the same "
            "noise. Compare a model with a trained version of itself."
        )
    HostDecoder(vae, before)  # raises if the VAE is another model's


def fixed_samples(dataset: Dataset, prompts: int, seeds: list[int], **how: Any) -> FixedSamples:
    """The pictures of each model: of every prompt one with each of the seeds; their conditionings are there then.

    prompts: how many of the dataset's, from the first. how: the rest of FixedSamples.
    """
    from .host.samples import FixedSamples

    prompts = min(prompts, len(dataset.prompts))
    indices = [i for i in range(prompts) for _ in seeds]
    dataset.prepare(indices)
    return FixedSamples(dataset=dataset, indices=indices, seeds=seeds * prompts, **how)


def check_many_steps(many_steps: int, steps: int):
    """Raises ValueError where these are not more."""
    if 0 < many_steps <= steps:
        raise ValueError(
            f"many_steps is {many_steps}, and the pictures have {steps} already: give more of them, or 0, or fewer "
            "steps on SRPO Previews."
        )


def summary_of(comparison: Comparison, sampled: Sequence[Sampled]) -> str:
    """What became of the pictures, and why they were made one at a time, if they were."""
    alone = next((each.alone for each in sampled if each.alone), "")
    return f"{comparison.summary()}. {alone}" if alone else comparison.summary()


def note_of(comparison: Comparison, sampling: Sampling, size: str) -> str:
    """How the pictures were made, for their sheet. size: as in "720x720"."""
    prompts = plural(len(comparison.prompts), "prompt")
    made = f"{prompts} x {plural(len(comparison.seeds), 'seed')}, {size}"
    steps = plural(sampling.steps, "step")
    guidance = "" if sampling.guidance is None else f", guidance {sampling.guidance:g}"
    cfg = "" if sampling.cfg == 1 else f", cfg {sampling.cfg:g}"
    return f"{made}; {sampling.sampler_name}, {sampling.scheduler}, {steps}{guidance}{cfg}."


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Compare",
            display_name="SRPO Compare",
            category=CATEGORY,
            description="Makes pictures of the same prompts from the same noise with two models, such as one before "
            "and after training, and shows them in pairs. With a reward it also says what has changed in numbers.",
            search_aliases=["before after", "compare models", "lora grid", "xy plot", "image grid", "srpo"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model_before", tooltip="The model as it was."),
                io.Model.Input("model_after", tooltip="The same with what was trained, for instance a LoRA."),
                DatasetType.Input("dataset", tooltip="The prompts; one row of pictures for each."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the models."),
                *size_inputs(),
                io.Int.Input(
                    "prompts", default=4, min=1, max=32, tooltip="How many of the dataset's prompts, from the first."
                ),
                io.Int.Input("seeds", default=2, min=1, max=16, tooltip="How many pictures of each prompt, per model."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63,
                    control_after_generate=False,
                    tooltip="The seed of each prompt's first picture; the next one has the next seed.",
                ),
                *guidance_inputs(
                    "The distilled guidance that you sample with. -1 is the model's own, which is 3.5 for FLUX.1-dev.",
                    "The classifier-free guidance that you sample with; it needs negative. 1 is none.",
                ),
                io.Int.Input(
                    "at_once",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many pictures share a forward; more is faster and needs more memory.",
                ),
                io.Int.Input(
                    "many_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="The steps of a second picture of each seed, which the first is held against: whether a "
                    "model that was distilled to few steps still manages with them. 0 makes none.",
                ),
                negative_input(),
                PreviewsType.Input(
                    "previews",
                    optional=True,
                    tooltip="How pictures are made: the sampler, its steps, a size, seeds and prompts, where that node "
                    "has some. Without it: euler, simple, 25 steps.",
                ),
                RewardModelType.Input(
                    "reward",
                    optional=True,
                    tooltip="The reward that scores each picture. Alone, it is asked about the prompt.",
                ),
                ObjectiveType.Input(
                    "objective",
                    optional=True,
                    tooltip="The words for the reward: the score is then the words-gap of each picture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All pairs on one picture, as the node shows it."),
                io.Image.Output(display_name="before", tooltip="The plain pictures: all of the first prompt first."),
                io.Image.Output(display_name="after", tooltip="The same pictures by the model after, in that order."),
                summary_output(),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model_before: ModelPatcher,
        model_after: ModelPatcher,
        dataset: Dataset,
        vae: VAE,
        width: int,
        height: int,
        prompts: int,
        seeds: int,
        seed: int,
        guidance: float,
        cfg: float,
        at_once: int,
        many_steps: int,
        negative: list | None,
        previews: PreviewSettings | None,
        reward: Reward | None,
        objective: Objective | None,
    ) -> io.NodeOutput:
        from .host.fitting import latent_shape
        from .host.samples import decode

        check_asked(reward, objective)
        check_models(model_before, model_after, vae)
        previews = previews or PreviewSettings()
        dataset = previews.dataset or dataset
        width = previews.width or width
        height = previews.height or height
        numbers = list(previews.seeds) or [seed + i for i in range(seeds)]
        sampling = replace(previews.sampling, guidance=asked_guidance(guidance), cfg=cfg)
        shape = latent_shape(model_before, width, height)
        check_many_steps(many_steps, sampling.steps)
        samples = fixed_samples(
            dataset, prompts, numbers, sampling=sampling, shape=shape, negative=negative, at_once=at_once
        )
        made = [samples, samples.with_steps(many_steps)] if many_steps else [samples]
        decoded_and_scored = len(samples.indices) * (2 * len(made) + (0 if reward is None else 2))
        on_progress = Progress(2 * sum(each.work for each in made) + decoded_and_scored)
        sampled = [each.sample(model, on_progress) for each in made for model in (model_before, model_after)]
        before, after, *more = (decode(vae, each.latents, on_progress) for each in sampled)
        texts = dataset.prompts[:prompts]  # by now a photo that turned out broken has another's
        device = comfy.model_management.get_torch_device()
        comparison = Comparison(
            texts,
            numbers,
            before,
            after,
            reward=reward,
            device=device,
            curvatures=(sampled[0].curvature, sampled[1].curvature),
            many=ManySteps(steps=many_steps, before=more[0], after=more[1]) if more else None,
        )
        if reward is not None:
            scores = score_pictures(comparison, reward, objective, device=device, on_progress=on_progress)
            comparison = replace(comparison, scores=scores)
        sheet = to_tensor(draw_comparison(comparison, note_of(comparison, sampling, f"{width}x{height}")))
        summary = summary_of(comparison, sampled)
        show_text(summary, cls.hidden.unique_id)
        return io.NodeOutput(sheet, comparison.before, comparison.after, summary, ui=preview(sheet, summary, cls))
