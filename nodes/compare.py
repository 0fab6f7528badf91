"""SRPO_Compare: the same pictures by two models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.latest import io

from ..srpo_core.report.compare import Comparison, plural, score_pictures
from ..srpo_core.report.compare_picture import draw_comparison
from .checked import checked
from .host.progress import Progress, show_text
from .inputs import sampler_inputs, settings_of, size_inputs
from .outputs import image_of, preview
from .sockets import CATEGORY, DatasetType, ObjectiveType, RewardModelType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.samples import FixedSamples


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


def fixed_samples(model: ModelPatcher, seeds: list[int], given: SimpleNamespace) -> FixedSamples:
    """The pictures of each model: of every prompt one with each of the seeds; their conditionings are there then."""
    from .host.flow_model import Sampling, latent_shape
    from .host.samples import FixedSamples

    sampling = settings_of(Sampling, vars(given))
    shape = latent_shape(model, given.width, given.height)
    prompts = len(given.dataset.prompts[: given.prompts])
    indices = [i for i in range(prompts) for _ in seeds]
    given.dataset.prepare(indices)
    return FixedSamples(
        dataset=given.dataset,
        sampling=sampling,
        shape=shape,
        indices=indices,
        seeds=seeds * prompts,
        at_once=given.at_once,
    )


def note_of(comparison: Comparison, given: SimpleNamespace) -> str:
    """How the pictures were made, for their sheet."""
    prompts = plural(len(comparison.prompts), "prompt")
    made = f"{prompts} x {plural(len(comparison.seeds), 'seed')}, {given.width}x{given.height}"
    steps = plural(given.steps, "step")
    return f"{made}; {given.sampler_name}, {given.scheduler}, {steps}, guidance {given.guidance:g}."


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Compare",
            display_name="SRPO Compare",
            category=CATEGORY,
            description="Makes pictures of the same prompts from the same noise with two models, such as one before "
            "and after training, and shows them in pairs. With a reward it also says what has changed in numbers.",
            search_aliases=["before after", "compare models", "lora grid", "xy plot"],
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
                *sampler_inputs(),
                io.Float.Input(
                    "guidance",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="FLUX guidance: what you sample with.",
                ),
                io.Int.Input(
                    "at_once",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many pictures share a forward; more is faster and needs more memory.",
                ),
                RewardModelType.Input(
                    "reward", optional=True, tooltip="Scores each picture. Alone, it is asked about the prompt."
                ),
                ObjectiveType.Input(
                    "objective", optional=True, tooltip="Its words: the score is then the words-gap of each picture."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All pairs on one picture, as the node shows it."),
                io.Image.Output(display_name="before", tooltip="The plain pictures: all of the first prompt first."),
                io.Image.Output(display_name="after", tooltip="The same pictures by the model after, in that order."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model_before: ModelPatcher, model_after: ModelPatcher, vae: VAE, seeds: int, **inputs: Any
    ) -> io.NodeOutput:
        from .host.samples import decode

        given = SimpleNamespace(**inputs)
        reward = given.reward
        if given.objective is not None and reward is None:
            raise ValueError("An objective is connected, but no reward to ask: connect a reward too, or neither.")
        check_models(model_before, model_after, vae)
        numbers = [given.seed + i for i in range(seeds)]
        samples = fixed_samples(model_before, numbers, given)
        on_progress = Progress(len(samples.indices) * (4 if reward is None else 6))
        latents = [samples.sample(model, on_progress) for model in (model_before, model_after)]
        before, after = (decode(vae, latent, on_progress) for latent in latents)
        texts = given.dataset.prompts[: given.prompts]  # by now a photo that turned out broken has another's
        comparison = Comparison(texts, numbers, before, after)
        if reward is not None:
            device = comfy.model_management.get_torch_device()
            scores = score_pictures(comparison, reward, given.objective, device=device, on_progress=on_progress)
            comparison = replace(comparison, scores=scores)
        sheet = image_of(draw_comparison(comparison, note_of(comparison, given)))
        summary = comparison.summary()
        show_text(summary, cls.hidden.unique_id)
        return io.NodeOutput(sheet, comparison.before, comparison.after, ui=preview(sheet, summary, cls))
