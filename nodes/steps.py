"""The four stages of one SRPO update as nodes; values and the ways back travel between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io, ui

from ..srpo_core.algorithm.direct_align import at_least_fp32, inject
from ..srpo_core.algorithm.gradient_check import check_once
from ..srpo_core.algorithm.noise_levels import GRID, draw_position
from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.step import Noised, normalise, one_step_recover, score_recovered
from ..srpo_core.algorithm.terms import Term
from ..srpo_core.rewards import Reward
from ..srpo_core.run.update import make_update
from ..srpo_core.seeds import derived_seed
from .checked import checked
from .file_metadata import taught_by
from .host.progress import show_text
from .inputs import cfg_input, negative_input, reward_name, weighing_inputs
from .messages import update_summary
from .noise_levels import NoiseLevels
from .open_run import OpenRun
from .open_runs import run_of
from .outputs import summary_output
from .rollouts import Rollouts
from .sockets import (
    CATEGORY,
    BothRecovered,
    NoisedType,
    NoiseLevelsType,
    ObjectiveType,
    RecoveredType,
    Rewarded,
    RewardModelType,
    RewardType,
    RolloutsType,
    TrainerType,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise


def sample_seeds(noise: Noise_RandomNoise, count: int) -> tuple[int, ...]:
    """The seeds of the samples of a batch: the noise's own, and others derived from it."""
    seed = getattr(noise, "seed", 0)  # not every custom noise has one
    return seed, *(derived_seed("sample", seed, i) for i in range(1, count))


class NoisePriorInject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_NoisePriorInject",
            display_name="Noise-Prior Inject",
            category=CATEGORY,
            description="Stage 1 of Direct-Align: mixes a clean latent with the very noise it was sampled from, at "
            "the noise levels of the denoise and of the inversion branch.",
            search_aliases=["direct-align", "add noise", "forward diffusion", "srpo"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the latent; it knows the latent's scale."),
                io.Latent.Input("latent", tooltip="The clean latent, as the sampler gave it."),
                io.Noise.Input("noise", tooltip="The noise that the sampler started from."),
                io.Int.Input(
                    "position",
                    default=0,
                    min=0,
                    max=GRID - 1,
                    tooltip="The place in the window: 1 is the low-noise end, 999 the high-noise end; 0 draws it from "
                    "the noise's seed, as SRPO Train does.",
                ),
                NoiseLevelsType.Input(
                    "levels", optional=True, tooltip="The window of noise levels; without it, the published one."
                ),
                RolloutsType.Input(
                    "rollouts", optional=True, tooltip="The steps, where the window is trained at those of rollouts."
                ),
            ],
            outputs=[
                NoisedType.Output(
                    display_name="noised", tooltip="The noisy latents of both branches, for One-Step Recover."
                ),
                io.Latent.Output(display_name="denoise input", tooltip="What the denoise branch starts from."),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels: denoise in and out, inversion in and out."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        latent: dict,
        noise: Noise_RandomNoise,
        position: int,
        levels: NoiseLevels | None,
        rollouts: Rollouts | None,
    ) -> io.NodeOutput:
        from .host.flow_model import check_latent
        from .host.patcher.carried import latent_in, latent_out

        samples = latent["samples"]
        check_latent(model, samples)
        with torch.inference_mode(False):
            x0 = latent_in(model, at_least_fp32(samples.clone()))
            prior = noise.generate_noise(latent).to(x0)
            seeds = sample_seeds(noise, len(x0))
            window = (levels or NoiseLevels()).trained_window(model, (rollouts or Rollouts()).sampling)
            branches = window.branches([position or draw_position(seeds[0])] * len(x0))
            noised = Noised(x0, prior, branches, seeds)
            start = latent_out(model, inject(x0, prior, branches[0].sigma_in))
        sigmas = torch.stack([s[0] for branch in branches for s in (branch.sigma_in, branch.sigma_out)]).float()
        return io.NodeOutput(noised, {"samples": start}, sigmas)


class OneStepRecover(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_OneStepRecover",
            display_name="One-Step Recover",
            category=CATEGORY,
            description="Stages 2 and 3 of Direct-Align: one step of the model from the noisy latent, then the known "
            "noise is taken out again. What is left is the clean latent as the model would have it.",
            search_aliases=["direct-align", "one step denoise", "predict x0", "srpo"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SRPO Trainer, to train; any flow model, to look."),
                io.Conditioning.Input("positive", tooltip="The prompt, with FluxGuidance (3.5 as published)."),
                NoisedType.Input("noised", tooltip="The noised latents of Noise-Prior Inject."),
                cfg_input("The classifier-free guidance that you sample with; it needs negative. 1 is none."),
                negative_input(),
            ],
            outputs=[
                RecoveredType.Output(display_name="recovered", tooltip="Both branches, for SRPO Reward."),
                io.Latent.Output(display_name="denoise", tooltip="The latent that the denoise branch recovered."),
                io.Latent.Output(display_name="inversion", tooltip="The latent that the inversion branch recovered."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model: ModelPatcher, positive: list, noised: Noised, cfg: float, negative: list | None
    ) -> io.NodeOutput:
        from .host.flow_model import HostFlow
        from .host.patcher.carried import latent_out

        flow = HostFlow(model, cfg=cfg, negative=negative)
        opened = run_of(model)
        if opened:
            branch = noised.branches[0]
            x = inject(noised.x0, noised.noise, branch.sigma_in)
            check_once(opened.run.checked, flow, positive, lambda: (x[:1], branch.sigma_in[:1]))
        recovered = {branch.name: one_step_recover(flow, positive, noised, branch) for branch in noised.branches}
        latents = [{"samples": latent_out(model, r.value)} for r in recovered.values()]
        update = opened.run.updates + 1 if opened else 1
        return io.NodeOutput(BothRecovered(model, noised, recovered, update), *latents)


class RewardNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Reward",
            display_name="SRPO Reward",
            category=CATEGORY,
            description="Stage 4 of Direct-Align: decodes what was recovered, asks the reward with the positive and "
            "with the negative word, and brings the gradient back to the latent.",
            search_aliases=["reward score", "hps", "words gap", "reward gradient", "srpo"],
            inputs=[
                RewardModelType.Input("reward", tooltip="The reward model that scores the pictures."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                RecoveredType.Input("recovered", tooltip="The recovered latents of One-Step Recover."),
                ObjectiveType.Input("objective", tooltip="The words that steer the reward, and their strengths."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    placeholder="The prompt of the picture",
                    tooltip="The prompt of the picture; words are put before it.",
                ),
                *weighing_inputs(),
                io.Boolean.Input(
                    "normalise",
                    default=False,
                    optional=True,
                    tooltip="Whether the loss is divided by the spread of this reward's scores in the run, so that "
                    "rewards of other units weigh alike: for several rewards on one picture.",
                ),
            ],
            outputs=[
                RewardType.Output(display_name="reward", tooltip="The scores with their gradient, for Train Step."),
                io.Float.Output(
                    display_name="words gap", tooltip="The reward with the positive word minus that with the negative."
                ),
                io.Image.Output(display_name="image", tooltip="The pictures that were scored, by branch."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        reward: Reward,
        vae: VAE,
        recovered: BothRecovered,
        objective: Objective,
        prompt: str,
        weight: float,
        name: str,
        normalise: bool,
    ) -> io.NodeOutput:
        from .host.decoder import HostDecoder

        decoder = HostDecoder(vae, recovered.model)
        terms = [Term(reward=reward, objective=objective, weight=weight, name=reward_name(name))]
        prompts = [prompt] * len(recovered.noised.x0)
        scores = [
            score_recovered(
                recovered.branches[branch.name], branch, decoder, terms, prompts=prompts, update=recovered.update
            )
            for branch in filter(objective.trains, recovered.noised.branches)
        ]
        gap = sum((a.positive - a.negative).mean().item() for s in scores for a in s.answers) / len(scores)
        images = torch.cat([s.image for s in scores]).movedim(1, -1).cpu()
        return io.NodeOutput(Rewarded(recovered.noised, scores, normalise, taught_by(terms)), gap, images)


class TrainStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_TrainStep",
            display_name="Train Step",
            category=CATEGORY,
            description="Pulls the gradients back through the model to the adapter and makes one update. Queue again "
            "for the next.",
            search_aliases=["optimizer step", "backward", "lora training", "srpo"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                TrainerType.Input("trainer", tooltip="The run that makes the step."),
                io.Autogrow.Input(
                    "rewards",
                    template=io.Autogrow.TemplatePrefix(
                        RewardType.Input("reward", tooltip="The scores of one picture by one reward."),
                        prefix="reward",
                        min=1,
                        max=16,
                    ),
                    tooltip="The scores that make the update: several pictures share one, and so do several rewards of "
                    "one picture.",
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer", tooltip="The same run, after the update."),
                io.Float.Output(display_name="loss", tooltip="The loss of the update."),
                io.Model.Output(display_name="model", tooltip="The model with the adapter as it is after the update."),
                summary_output(),
            ],
        )

    @classmethod
    @checked
    def execute(cls, trainer: OpenRun, rewards: dict[str, Rewarded]) -> io.NodeOutput:
        scores = [score for rewarded in rewards.values() if not rewarded.normalised for score in rewarded.scores]
        scaled = [score for rewarded in rewards.values() if rewarded.normalised for score in rewarded.scores]
        scores += normalise(scaled, trainer.run.spreads)
        pictures = {id(rewarded.noised): len(rewarded.noised.x0) for rewarded in rewards.values()}
        node = cls.hidden.unique_id
        trainer.run.on_trouble = lambda text: show_text(text, node)
        trainer.run.troubles.clear()
        trainer.taught = [entry for rewarded in rewards.values() for entry in rewarded.taught]
        # The user may queue no other, so it is saved.
        metrics = make_update(trainer.run, scores, sum(pictures.values()), save=True)
        if metrics["update"] % trainer.run.settings.save_every == 0:
            trainer.save_lora()
        left_out = trainer.left_out if metrics["update"] == 1 else ""
        text = " ".join(filter(None, [update_summary(trainer.name, metrics), *trainer.run.troubles, left_out]))
        show_text(text, node)
        return io.NodeOutput(trainer, metrics["loss"], trainer.model, text, ui=ui.PreviewText(text))
