"""A reward whose weights ComfyUI moves between devices and may evict, like any model of its own."""

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...srpo_core.rewards import ClipReward


class HostReward:
    def __init__(self, reward: ClipReward):
        self.reward = reward
        self.patcher = comfy.model_patcher.ModelPatcher(
            nn.ModuleDict({"reward": reward.model}),  # the patcher sets attributes that a transformers model refuses
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def score(self, images: Tensor, *texts: list[str]) -> Tensor:
        with torch.inference_mode(False):
            comfy.model_management.load_models_gpu([self.patcher])
            return self.reward.score(images.to(self.patcher.load_device), *texts)
