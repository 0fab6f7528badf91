"""SRPO_Compare: the same pictures by two models."""

from dataclasses import replace

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..srpo_core.report.compare import Comparison, plural, score
from ..srpo_core.report.compare_picture import draw_comparison
from .checked import checked
from .host.progress import Progress, show_text
from .inputs import sampler_inputs, size_inputs
from .sockets import CATEGORY, DatasetType, ObjectiveType, RewardModelType


def check_models(before, after, vae):
    """Raises ValueError for models of two kinds, whose pictures can't share noise, and for a VAE that isn't theirs."""
    from .host.decoder import HostDecoder

    kinds = [
        f"{type(model.model).__name__} with {type(model.get_model_object('latent_format')).__name__} latents"
        for model in (before, after)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"The model before is {kinds[0]}, the model after {kinds[1]}: their pictures can't come from the same "
            "noise. Compare a model with a trained version of itself."
        )
    HostDecoder(vae, before)  # says so if the VAE is another model's


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
                    tooltip="Of the first picture of each prompt; the next one has the next seed.",
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
        cls,
        model_before,
        model_after,
        dataset,
        vae,
        width,
        height,
        prompts,
        seeds,
        seed,
        sampler_name,
        scheduler,
        steps,
        guidance,
        at_once,
        reward=None,
        objective=None,
    ) -> io.NodeOutput:
        from .host.flow_model import Sampling, latent_shape
        from .host.samples import Plan, decode

        if objective is not None and reward is None:
            raise ValueError("An objective is connected, but no reward to ask: connect a reward too, or neither.")
        check_models(model_before, model_after, vae)
        sampling = Sampling(sampler_name, scheduler, steps, guidance)
        shape = latent_shape(model_before, width, height)
        texts = dataset.prompts[:prompts]
        numbers = [seed + i for i in range(seeds)]
        indices = [i for i in range(len(texts)) for _ in numbers]
        if hasattr(dataset, "prepare"):
            dataset.prepare(indices)
            texts = dataset.prompts[:prompts]  # a photo that turned out broken has another's
        plan = Plan(dataset, sampling, shape, indices, numbers * len(texts), at_once)
        on_progress = Progress(len(indices) * (4 if reward is None else 6))

        latents = [plan.sample(model, on_progress) for model in (model_before, model_after)]
        before, after = (decode(vae, latent, on_progress) for latent in latents)
        comparison = Comparison(texts, numbers, before, after)
        if reward is not None:
            device = comfy.model_management.get_torch_device()
            comparison = replace(comparison, scores=score(comparison, reward, objective, device, on_progress))
        made = f"{plural(len(texts), 'prompt')} x {plural(seeds, 'seed')}, {width}x{height}"
        note = f"{made}; {sampler_name}, {scheduler}, {plural(steps, 'step')}, guidance {guidance:g}."
        picture = draw_comparison(comparison, note)
        sheet = torch.from_numpy(np.asarray(picture) / np.float32(255))[None]
        summary = comparison.summary()
        show_text(summary, cls.hidden.unique_id)
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(summary).as_dict()}
        return io.NodeOutput(sheet, before, after, ui=shown)
