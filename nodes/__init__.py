"""The nodes, thin over `srpo_core`; `host/` alone knows ComfyUI's internals."""

import logging
import re
from pathlib import Path

from comfy_api.latest import ComfyExtension

from ..srpo_core import language
from .add_reward import AddReward
from .compare import Compare
from .load_reward import LoadReward
from .mix import MixNode
from .noise_levels import NoiseLevelsNode
from .objective import ObjectiveNode
from .optimizer import OptimizerNode
from .photos import PhotosNode
from .previews import PreviewsNode
from .prompts import PromptsNode
from .recovery_sweep import RecoverySweep
from .reward_table import RewardTable
from .rollouts import RolloutsNode
from .steps import NoisePriorInject, OneStepRecover, RewardNode, TrainStep
from .toy import ToyModels
from .train import TrainNode
from .trainer import TrainerNode
from .watch import WatchNode

FOLDER = Path(__file__).parent.parent.name  # the pack's

log = logging.getLogger(__name__)


class SRPOExtension(ComfyExtension):
    async def on_load(self):
        from .host.language import translations

        language.use(translations)

    async def get_node_list(self):
        return [
            TrainerNode,
            TrainNode,
            ObjectiveNode,
            PromptsNode,
            PhotosNode,
            MixNode,
            RolloutsNode,
            NoiseLevelsNode,
            WatchNode,
            PreviewsNode,
            OptimizerNode,
            NoisePriorInject,
            OneStepRecover,
            RewardNode,
            LoadReward,
            AddReward,
            TrainStep,
            RewardTable,
            RecoverySweep,
            Compare,
            ToyModels,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    if not re.fullmatch(r"[\w.~+-]+", FOLDER, re.ASCII):
        log.warning(
            'ComfyUI serves no help pages and no templates from a folder called "%s": rename it, for example to '
            "ComfyUI-SRPO. The nodes work as they are.",
            FOLDER,
        )
    return SRPOExtension()
