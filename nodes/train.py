"""SRPO_Train: the whole loop in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..srpo_core.pictures import to_tensor
from ..srpo_core.run.work import WorkPlan, work_of
from .checked import checked
from .host.workflow import workflow_of
from .inputs import asked_guidance, guidance_inputs, negative_input, size_inputs
from .memory import memory_input
from .noise_levels import NoiseLevels
from .open_run import OpenRun
from .outputs import loss_map, summary_output
from .previews import Previews, PreviewSettings
from .rollouts import Rollouts
from .sample_files import SampleFiles
from .session import Session
from .sockets import (
    CATEGORY,
    DatasetType,
    NoiseLevelsType,
    ObjectiveType,
    PreviewsType,
    RewardModelType,
    RewardsType,
    RolloutsType,
    TrainerType,
    WatchType,
)
from .training import TrainInputs, samples_of, training_of
from .watch import Watch


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
            search_aliases=["lora training", "train lora", "fine-tune", "finetune", "rlhf", "realism", "refl", "draft"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                TrainerType.Input("trainer", tooltip="The run to train."),
                DatasetType.Input(
                    "dataset",
                    tooltip="The dataset of SRPO Prompts; of SRPO Photos, to train without rollouts; or of SRPO Mix.",
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                RewardModelType.Input("reward", tooltip="The reward model that scores the pictures."),
                ObjectiveType.Input("objective", tooltip="The words that steer the reward, and their strengths."),
                io.Int.Input(
                    "updates",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="How many updates to make now. 10 to 20 "
                    "were enough for FLUX at the published batch, which is 32; more can spoil a model.",
                ),
                *size_inputs(
                    "The width of the pictures, where SRPO Rollouts and SRPO Previews have none of their own.",
                    "The height of the pictures, where SRPO Rollouts and SRPO Previews have none of their own.",
                ),
                io.Int.Input("batch", default=8, min=1, max=1024, tooltip="How many prompts or photos one update has."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63,
                    control_after_generate=False,
                    tooltip="The seed of noise, noise levels and the order of prompts.",
                ),
                *guidance_inputs(
                    "The distilled guidance of the trained step and of the previews, for FLUX.1-dev and models like "
                    "it: what you will sample with. -1 is the model's own, which is 3.5 for FLUX.1-dev.",
                    "The classifier-free guidance of the trained step and of the previews, for models that are sampled "
                    "so: what you will sample with. It needs negative, and asks the model twice. 1 is none.",
                ),
                memory_input(),
                negative_input(),
                RolloutsType.Input(
                    "rollouts", optional=True, tooltip="How the trained pictures are made: sampler, steps, size."
                ),
                NoiseLevelsType.Input("levels", optional=True, tooltip="Which noise levels are trained."),
                WatchType.Input("watch", optional=True, tooltip="How far training may go, and what happens there."),
                PreviewsType.Input("previews", optional=True, tooltip="Which samples this node shows."),
                RewardsType.Input(
                    "more_rewards",
                    optional=True,
                    tooltip="The rewards of Add Reward: others that train too, or only watch.",
                ),
                io.Vae.Input(
                    "gradient_vae",
                    optional=True,
                    tooltip="A tiny VAE such as TAEF1, for what the reward sees: less memory and time. The previews "
                    "stay with vae.",
                ),
            ],
            outputs=[
                TrainerType.Output(display_name="trainer", tooltip="The same run, after training."),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The adapter as it is now, for Load LoRA Model or Save LoRA Weights.",
                ),
                io.LossMap.Output(display_name="loss map", tooltip="The loss of every update, for Plot Loss Graph."),
                io.Image.Output(display_name="images", tooltip="The fixed-seed samples: before, then after."),
                summary_output(),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        trainer: OpenRun,
        rollouts: Rollouts | None,
        levels: NoiseLevels | None,
        watch: Watch | None,
        previews: PreviewSettings | None,
        more_rewards: list | None,
        guidance: float,
        **others: Any,
    ) -> io.NodeOutput:
        inputs = TrainInputs(
            rollouts=rollouts or Rollouts(),
            levels=levels or NoiseLevels(),
            watch=watch or Watch(),
            previews=previews or PreviewSettings(),
            more_rewards=more_rewards or [],
            guidance=asked_guidance(guidance),
            **others,
        )
        node = cls.hidden.unique_id
        training, advice = training_of(trainer, inputs, node)
        shown = Previews(trainer, samples_of(inputs, training, trainer.model), inputs.vae, inputs.reward)
        session = Session(
            trainer,
            training,
            previews=shown,
            plan=WorkPlan(
                first=trainer.run.updates,
                updates=inputs.updates,
                each=work_of(training, inputs.rollouts.sampling.steps),
                samples=shown.samples.work,
                every=inputs.previews.every,
            ),
            watch=inputs.watch,
            node=node,
            files=SampleFiles(trainer.run, workflow_of(cls.hidden)),
            advice=advice,
        )
        pictures = session.run()
        return io.NodeOutput(
            trainer,
            trainer.adapter.state_dict(),
            loss_map(trainer.run.history),
            pictures.samples,
            pictures.summary,
            ui=ui.PreviewImage(to_tensor(pictures.card), cls=cls),
        )
