"""The nodes, thin over `srpo_core`; `host/` alone knows ComfyUI's internals."""

from comfy_api.latest import ComfyExtension

from .add_reward import AddReward
from .compare import Compare
from .load_reward import LoadReward
from .objective import ObjectiveNode
from .photos import PhotosNode
from .prompts import PromptsNode
from .reward_table import RewardTable
from .steps import NoisePriorInject, OneStepRecover, RewardNode, TrainStep
from .toy import ToyModels
from .train import TrainNode
from .trainer import TrainerNode


class SRPOExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            TrainerNode,
            TrainNode,
            ObjectiveNode,
            PromptsNode,
            PhotosNode,
            NoisePriorInject,
            OneStepRecover,
            RewardNode,
            LoadReward,
            AddReward,
            TrainStep,
            RewardTable,
            Compare,
            ToyModels,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    return SRPOExtension()
