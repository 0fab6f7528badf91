"""SRPO_Train: the whole loop in one node."""

import logging
import math
import time
from dataclasses import replace

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..srpo_core.algorithm.guard import Guard
from ..srpo_core.algorithm.noise_levels import Window
from ..srpo_core.algorithm.terms import Term, combine
from ..srpo_core.report.card import draw_card
from ..srpo_core.run.draws import Batching
from ..srpo_core.run.loop import prepare_data, train
from ..srpo_core.run.memory import AUTO, Use
from ..srpo_core.run.training import Training
from ..srpo_core.run.watch import Limits, crossed
from .checked import checked
from .host.progress import show_text
from .inputs import check_window, guard_input, limit_input, sampler_inputs, size_inputs, window_inputs
from .memory import memory_inputs, use_of_memory
from .messages import summary, warning
from .photos import for_model, replaced
from .previews import Previews, parse_seeds, shown
from .sockets import CATEGORY, DatasetType, ObjectiveType, RewardModelType, RewardsType, TrainerType

log = logging.getLogger(__name__)


def loss_map(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """The finite losses of a run, as the core's LOSS_MAP.

    Its plot divides by their range. Where they are all the same, as of one update, the next larger number is added,
    which its axis shows as that same loss; where none is finite there is nothing but a zero and that.
    """
    losses = [metrics["loss"] for metrics in history if math.isfinite(metrics["loss"])] or [0.0]
    level = min(losses) == max(losses)
    return {"loss": [*losses, math.nextafter(losses[-1], math.inf)] if level else losses}


class TrainNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Train",
            display_name="SRPO Train",
            category=CATEGORY,
            description="Trains: the model makes pictures of the prompts, or takes your photos; the reward scores what "
            "one step from noisy versions of them leads to, and the adapter learns from it. Queue again to go on; "
            "cancel keeps the last finished update.",
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                TrainerType.Input("trainer", tooltip="The run to train."),
                DatasetType.Input(
                    "dataset", tooltip="From SRPO Prompts, or from SRPO Photos to train without rollouts."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                RewardModelType.Input("reward", tooltip="The reward model."),
                ObjectiveType.Input("objective", tooltip="Words and strengths."),
                io.Int.Input(
                    "updates",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="How many updates to make now. 10 to 20 "
                    "were enough for FLUX at the published batch; more can spoil a model.",
                ),
                *size_inputs(),
                io.Int.Input("batch", default=8, min=1, max=1024, tooltip="Prompts in one update."),
                io.Int.Input(
                    "at_once",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="At most how many of them share a forward; more needs more memory and gives the same "
                    "result. 0: on a GPU memory chooses, else 1.",
                ),
                *sampler_inputs(),
                io.Float.Input(
                    "rollout_guidance",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="FLUX guidance of the rollouts: 1 as published with HPS, 2 with PickScore.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="FLUX guidance of the trained step and of the previews: what you will sample with.",
                ),
                *window_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63,
                    control_after_generate=False,
                    tooltip="Of noise, noise levels and the order of prompts.",
                ),
                io.Int.Input(
                    "preview_every", default=5, min=1, max=1000, tooltip="Updates between two pictures on this node."
                ),
                io.Int.Input(
                    "previews", default=4, min=1, max=64, tooltip="How many fixed-seed samples the picture shows."
                ),
                RewardsType.Input(
                    "more_rewards", optional=True, tooltip="From Add Reward: others that train too, or only watch."
                ),
                io.Int.Input(
                    "pairs",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Pairs of branches that one rollout serves, each at a noise level of its own. 1 as "
                    "published; more learn more from each rollout, which costs far more than a branch.",
                ),
                limit_input("words_gap_limit", "The words-gap has risen by this much since the run began: far enough."),
                limit_input(
                    "saturation_limit", "Saturation has risen by this share, 0.1 being 10 %: a sign of hacking."
                ),
                limit_input(
                    "watching_limit",
                    "A reward that only watches has fallen by so many of its standard deviations: a sign of hacking.",
                ),
                io.Combo.Input(
                    "at_limit",
                    options=["warn", "stop"],
                    default="warn",
                    optional=True,
                    tooltip="What to do at one of the limits: say so, or end the training there.",
                ),
                io.Int.Input(
                    "reuse",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Updates that the same prompts and their rollouts serve, at ever new noise levels. 1 as "
                    "published; more saves rollouts, which age meanwhile.",
                ),
                DatasetType.Input(
                    "photos",
                    optional=True,
                    tooltip="From SRPO Photos, to train on beside the prompts: in place of a part of them.",
                ),
                io.Float.Input(
                    "photo_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of each batch is photos instead of prompts, where photos are connected.",
                ),
                guard_input(
                    "norm_guard", "NormGuard: a penalty for velocities of a larger norm than the frozen model's."
                ),
                guard_input(
                    "frozen_pull", "Pulls the model back: a penalty for the squared distance to the frozen velocity."
                ),
                limit_input(
                    "velocity_limit",
                    "The velocity's norm over the frozen model's has risen by this share, 0.1 being 10 %: pictures "
                    "soon get worse.",
                ),
                DatasetType.Input(
                    "preview_dataset",
                    optional=True,
                    tooltip="Prompts to show instead of the first ones of the dataset: for validation.",
                ),
                io.String.Input(
                    "preview_seeds",
                    default="",
                    optional=True,
                    tooltip="Seeds of the samples, one after the other. Empty: some that training never draws.",
                ),
                io.Vae.Input(
                    "gradient_vae",
                    optional=True,
                    tooltip="A tiny VAE such as TAEF1, for what the reward sees: less memory and time. The previews "
                    "stay with vae.",
                ),
                io.Int.Input(
                    "kept_blocks",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Of the model's blocks, how many keep their activations for the backward instead of "
                    "computing them again: faster, where there is memory.",
                ),
                io.Boolean.Input(
                    "shared_noise",
                    default=False,
                    optional=True,
                    tooltip="All prompts of an update begin from one noise, as published, instead of each from its "
                    "own. Their noise levels still differ.",
                ),
                *memory_inputs(),
                io.Boolean.Input(
                    "compile_blocks",
                    default=False,
                    optional=True,
                    tooltip="Experimental: torch.compile of the model's blocks, to sample and to train. Takes minutes "
                    "at first, and needs the whole model on the GPU; where it fails, training goes on without.",
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer"),
                io.LoraModel.Output(display_name="lora"),
                io.LossMap.Output(display_name="loss map"),
                io.Image.Output(display_name="images", tooltip="The fixed-seed samples: before, then after."),
            ],
        )

    @classmethod
    def validate_inputs(cls, sigma_max=None, sigma_min=None, preview_seeds=""):
        try:
            parse_seeds(preview_seeds or "")
        except ValueError as error:
            return str(error)
        return check_window(sigma_max, sigma_min)

    @classmethod
    @checked
    def execute(
        cls,
        trainer,
        dataset,
        vae,
        reward,
        objective,
        updates,
        width,
        height,
        batch,
        at_once,
        sampler_name,
        scheduler,
        steps,
        rollout_guidance,
        guidance,
        sigma_max,
        sigma_min,
        seed,
        preview_every,
        previews,
        more_rewards=(),
        pairs=1,
        words_gap_limit=0.0,
        saturation_limit=0.0,
        watching_limit=0.0,
        at_limit="warn",
        reuse=1,
        photos=None,
        photo_share=0.5,
        norm_guard=0.0,
        frozen_pull=0.0,
        velocity_limit=0.0,
        preview_dataset=None,
        preview_seeds="",
        gradient_vae=None,
        kept_blocks=0,
        shared_noise=False,
        memory=AUTO,
        park_inputs=False,
        sampled_at_once=0,
        compile_blocks=False,
    ) -> io.NodeOutput:
        from .host.decoder import HostDecoder
        from .host.flow_model import HostFlow, Sampling, latent_shape

        window = Window(sigma_max, sigma_min)
        seeds = parse_seeds(preview_seeds)
        terms = combine([Term(reward=reward, objective=objective), *more_rewards])
        dataset, photos = (for_model(data, trainer.model) for data in (dataset, photos))
        shape = latent_shape(trainer.model, width, height)
        decoder = HostDecoder(gradient_vae or vae, trainer.model)
        batching = Batching(
            shape=shape,
            batch=batch,
            at_once=1,
            seed=seed,
            pairs=pairs,
            reuse=reuse,
            photo_share=photo_share,
            shared_noise=shared_noise,
        )
        also = [0] if preview_dataset else shown(dataset, previews)  # all at once: text encoders take long to load
        first = trainer.run.updates
        prepare_data(range(first, first + updates), batching, dataset, photos=photos, also=also)
        by_hand = Use(min(at_once, batch), kept_blocks, park_inputs, sampled_at_once)
        use, working = use_of_memory(
            cls.hidden.unique_id, memory, by_hand, trainer, decoder, terms, dataset, shape, batch
        )
        batching = replace(batching, at_once=use.at_once, sampled_at_once=use.sampled_at_once)
        rollouts = Sampling(sampler_name, scheduler, steps, rollout_guidance)
        flow = HostFlow(
            trainer.model,
            rollouts,
            guidance,
            kept_blocks=use.kept_blocks,
            offload=use.offload,
            working=working,
            compiled=compile_blocks,
        )
        sampling = Sampling(sampler_name, scheduler, steps, guidance)
        samples = Previews(trainer, preview_dataset or dataset, vae, sampling, batching, previews, seeds)
        bar = comfy.utils.ProgressBar(updates)
        run = trainer.run
        started = time.monotonic()

        def card(now: torch.Tensor):
            picture = draw_card(samples.before, now, run.history, f"{trainer.name}, update {run.updates}")
            file = run.folder / "samples" / f"{run.updates:06d}.png"
            run.write_aside(file, lambda path: picture.save(path, "PNG"))
            return picture

        node = cls.hidden.unique_id
        run.on_trouble = lambda text: show_text(text, node)
        limits = Limits(
            words_gap=words_gap_limit, saturation=saturation_limit, watching=watching_limit, velocity=velocity_limit
        )
        watching = [term.name for term in terms if not term.weight]

        def on_update(metrics: dict) -> bool:
            comfy.model_management.throw_exception_if_processing_interrupted()
            every = run.settings.snapshot_every
            if every and metrics["update"] % every == 0:
                trainer.save_lora()
            due = metrics["update"] % preview_every == 0 and metrics["update"] < first + updates
            bar.update_absolute(
                metrics["update"] - first, updates, ("JPEG", card(samples.now()), None) if due else None
            )
            reached = crossed(run.history, limits, watching, run.spreads)
            if reached:
                show_text(warning(run.updates, reached), cls.hidden.unique_id)
            return bool(reached) and at_limit == "stop"

        training = Training(
            flow=flow,
            decoder=decoder,
            terms=terms,
            dataset=dataset,
            batching=batching,
            window=window,
            photos=photos,
            guard=Guard(norm_weight=norm_guard, distance_weight=frozen_pull),
        )
        try:
            train(run, training, updates, on_update)
        finally:
            if run.updates > first:
                lora = trainer.save_lora()
        after = samples.now()
        picture = card(after)
        bar.update_absolute(updates, updates, ("JPEG", picture, None))  # else the node goes on to show the last preview
        text = summary(trainer, run.updates - first, time.monotonic() - started, lora) + replaced(dataset, photos)
        if reached := crossed(run.history, limits, watching, run.spreads):
            text += " " + warning(run.updates, reached)
        text = " ".join([text, *run.troubles])
        show_text(text, cls.hidden.unique_id)
        return io.NodeOutput(
            trainer,
            trainer.adapter.state_dict(),
            loss_map(run.history),
            torch.cat([samples.before, after]),
            ui=ui.PreviewImage(torch.from_numpy(np.asarray(picture) / np.float32(255))[None], cls=cls),
        )
