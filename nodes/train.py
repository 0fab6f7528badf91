"""SRPO_Train: the whole loop in one node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..srpo_core.algorithm.protocols import Dataset
from ..srpo_core.pictures import to_tensor
from ..srpo_core.run.draws import Batching
from ..srpo_core.run.memory import MemoryUse
from .checked import answer_of, checked
from .host.sampling import Sampling
from .inputs import (
    GUIDANCE,
    check_window,
    guard_inputs,
    guidance_input,
    limit_inputs,
    sampler_inputs,
    settings_of,
    size_inputs,
    window_inputs,
)
from .memory import memory_inputs
from .open_run import OpenRun
from .outputs import loss_map
from .previews import PreviewSettings, parse_seeds, previewed, seeds_of
from .session import Session
from .sockets import CATEGORY, DatasetType, ObjectiveType, RewardModelType, RewardsType, TrainerType
from .training import limits_of, training_of

if TYPE_CHECKING:
    from comfy.sd import VAE


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
                    "dataset", tooltip="The dataset of SRPO Prompts, or of SRPO Photos to train without rollouts."
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
                guidance_input(
                    "rollout_guidance",
                    Sampling.guidance,
                    "FLUX guidance of the rollouts: 1 as published with HPS, 2 with PickScore.",
                ),
                guidance_input(
                    "guidance",
                    GUIDANCE,
                    "FLUX guidance of the trained step and of the previews: what you will sample with.",
                ),
                *window_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63,
                    control_after_generate=False,
                    tooltip="The seed of noise, noise levels and the order of prompts.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=PreviewSettings.every,
                    min=1,
                    max=1000,
                    tooltip="Updates between two pictures on this node.",
                ),
                io.Int.Input(
                    "previews",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many fixed-seed samples the picture shows.",
                ),
                RewardsType.Input(
                    "more_rewards",
                    optional=True,
                    tooltip="The rewards of Add Reward: others that train too, or only watch.",
                ),
                io.Int.Input(
                    "pairs",
                    default=Batching.pairs,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Pairs of branches that one rollout serves, each at a noise level of its own. 1 as "
                    "published; more learn more from each rollout, which costs far more than a branch.",
                ),
                *limit_inputs(),
                io.Int.Input(
                    "reuse",
                    default=Batching.reuse,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Updates that the same prompts and their rollouts serve, at ever new noise levels. 1 as "
                    "published; more saves rollouts, which age meanwhile.",
                ),
                DatasetType.Input(
                    "photos",
                    optional=True,
                    tooltip="The dataset of SRPO Photos, to train on beside the prompts: in place of a part of them.",
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
                *guard_inputs(),
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
                    default=MemoryUse.kept_blocks,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="How many of the model's blocks keep their activations for the backward instead of "
                    "computing them again: faster, where there is memory.",
                ),
                io.Boolean.Input(
                    "shared_noise",
                    default=Batching.shared_noise,
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
    def validate_inputs(
        cls, sigma_max: float | None = None, sigma_min: float | None = None, preview_seeds: str | None = ""
    ) -> bool | str:
        seeds = answer_of(parse_seeds, preview_seeds or "")
        return answer_of(check_window, sigma_max, sigma_min) if seeds is True else seeds

    @classmethod
    @checked
    def execute(
        cls,
        trainer: OpenRun,
        updates: int,
        vae: VAE,
        previews: int,
        preview_every: int,
        preview_dataset: Dataset | None,
        preview_seeds: str,
        at_limit: str,
        **inputs: Any,
    ) -> io.NodeOutput:
        from .host.samples import FixedSamples

        node = cls.hidden.unique_id
        seeds = parse_seeds(preview_seeds)
        also = 1 if preview_dataset else previews
        training = training_of(trainer, updates, node, also_encoded=also, vae=vae, **inputs)
        shown = preview_dataset or training.dataset
        samples = FixedSamples(
            dataset=shown,
            sampling=settings_of(Sampling, inputs),
            shape=training.batching.shape,
            indices=previewed(shown, previews),
            seeds=seeds_of(seeds, previews),
            at_once=training.batching.at_once,
        )
        session = Session(
            trainer,
            training,
            updates=updates,
            previews=PreviewSettings(samples=samples, vae=vae, every=preview_every),
            limits=limits_of(**inputs),
            at_limit=at_limit,
            node=node,
        )
        pictures = session.run()
        return io.NodeOutput(
            trainer,
            trainer.adapter.state_dict(),
            loss_map(trainer.run.history),
            pictures.samples,
            ui=ui.PreviewImage(to_tensor(pictures.card), cls=cls),
        )
