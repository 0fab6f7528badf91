"""SRPO_RecoverySweep: what the algorithm sees of a picture, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..srpo_core.algorithm.direct_align import at_least_fp32
from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.sweep import LEAST_LEVELS, Question
from ..srpo_core.algorithm.terms import Term
from ..srpo_core.pictures import to_tensor
from ..srpo_core.report.sweep import make_sweep
from ..srpo_core.report.sweep_picture import draw_sweep
from ..srpo_core.rewards import Reward
from .checked import checked
from .host.progress import Progress, show_text
from .inputs import cfg_input, check_asked, negative_input
from .noise_levels import NoiseLevels
from .outputs import preview
from .sockets import CATEGORY, NoiseLevelsType, ObjectiveType, RewardModelType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

MOST_LEVELS = 16


def first_picture(model: ModelPatcher, latent: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 and the noise of this seed, (1, C, H, W) as the model works with them: of a batch's first picture.

    Raises ValueError for a latent that the model can't take, and for one with no picture in it.
    """
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from .host.flow_model import check_latent
    from .host.patcher.carried import latent_in

    samples = latent["samples"]
    check_latent(model, samples)
    if not samples.numel() or not samples[:1].any():
        raise ValueError(
            f"There is no picture in the latent of the shape {tuple(samples.shape)}: connect what a sampler gave, or a "
            "photo by VAE Encode."
        )
    if not samples[:1].isfinite().all():
        raise ValueError("The latent holds NaN or infinite numbers: look at what made it, and sample or encode again.")
    noise = Noise_RandomNoise(seed).generate_noise(latent)  # of the whole batch, as a sampler draws it
    x0 = latent_in(model, at_least_fp32(samples[:1].clone()))
    return x0, noise[:1].to(x0)


class RecoverySweep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_RecoverySweep",
            display_name="SRPO Recovery Sweep",
            category=CATEGORY,
            description="Shows what SRPO sees of a picture before anything is trained: noised to one level after the "
            "other, and from each brought back by one step of the model, plain and with the noise prior. With a reward "
            "also what it says of both, and how strong its gradient is. The trained window is shaded.",
            search_aliases=["direct align", "one step prediction", "noise levels", "explain srpo", "x0 prediction"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that you want to train. Nothing is trained here."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt of the picture, with FluxGuidance (3.5 as published, and as ComfyUI takes "
                    "without it).",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The clean picture: a sampler's latent, or a photo by VAE Encode. The first of a batch.",
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    placeholder="The prompt of the picture",
                    tooltip="What the reward reads after its words. May be empty: then it reads the words alone.",
                ),
                io.Int.Input(
                    "count",
                    default=9,
                    min=LEAST_LEVELS,
                    max=MOST_LEVELS,
                    tooltip="How many noise levels to look at: one above the window, about a third below it, the rest "
                    "in it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The seed of the noise. The sampler's own seed gives the noise that the picture came from, "
                    "as in training; for a photo any will do.",
                ),
                io.Boolean.Input(
                    "gradient",
                    default=True,
                    tooltip="Whether the loss is also brought back to the latents, as training does. It takes "
                    "about as long again.",
                ),
                cfg_input("The classifier-free guidance that you sample with; it needs negative. 1 is none."),
                negative_input(),
                RewardModelType.Input("reward", optional=True, tooltip="The reward model; without it only pictures."),
                ObjectiveType.Input(
                    "objective", optional=True, tooltip="The words and strengths; without it the published ones."
                ),
                NoiseLevelsType.Input("levels", optional=True, tooltip="The window; without it, the published one."),
            ],
            outputs=[
                io.Image.Output(display_name="sweep", tooltip="The picture that the node shows."),
                io.Image.Output(
                    display_name="recovered", tooltip="The pictures with the noise prior in full size, noisiest first."
                ),
                io.Image.Output(
                    display_name="plain", tooltip="The pictures by plain one-step prediction in full size."
                ),
                io.String.Output(display_name="summary", tooltip="Where the window lies and what is seen, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        latent: dict,
        vae: VAE,
        prompt: str,
        count: int,
        seed: int,
        gradient: bool,
        cfg: float,
        negative: list | None,
        reward: Reward | None,
        objective: Objective | None,
        levels: NoiseLevels | None,
    ) -> io.NodeOutput:
        from .host.decoder import HostDecoder
        from .host.flow_model import HostFlow

        check_asked(reward, objective)
        question = None
        if reward is not None:
            term = Term(reward=reward, objective=objective or Objective())
            question = Question(term=term, prompt=prompt, seed=seed)
        with torch.inference_mode(False):
            x0, noise = first_picture(model, latent, seed)
            flow = HostFlow(model, cfg=cfg, negative=negative)
            sweep = make_sweep(
                flow,
                HostDecoder(vae, model),
                x0,
                noise,
                cond=positive,
                window=(levels or NoiseLevels()).window_of(model),
                count=count,
                noisiest=flow.process.largest_share,
                question=question,
                gradient=gradient,
                on_progress=Progress(1 + 4 * count),
            )
        sheet = to_tensor(draw_sweep(sweep, prompt))
        summary = sweep.summary()
        show_text(summary, cls.hidden.unique_id)
        batches = [torch.stack([view.image for view in row]).movedim(1, -1) for row in (sweep.recovered, sweep.plain)]
        return io.NodeOutput(sheet, *batches, summary, ui=preview(sheet, summary, cls))
