"""Rewards whose towers ComfyUI moves between devices and may evict, like any model of its own."""

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

from ...srpo_core.rewards import DotProductReward
from .patcher.loading import load_ordinary
from .progress import Steps


def place(tower: nn.Module) -> torch.device:
    """Have the host load this tower; returns the device it computes on."""
    if not hasattr(tower, "patcher"):
        tower.patcher = comfy.model_patcher.ModelPatcher(
            nn.ModuleDict({"tower": tower}),  # the patcher sets attributes that a transformers model refuses
            load_device=device_of(tower),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    load_ordinary(tower.patcher)
    return tower.patcher.load_device


def device_of(tower: nn.Module) -> torch.device:
    """Where `place` puts it."""
    return tower.patcher.load_device if hasattr(tower, "patcher") else comfy.model_management.get_torch_device()


def managed(reward: DotProductReward) -> DotProductReward:
    """The same reward, its towers from now on in the hands of the host's memory management; it hears Cancel."""
    reward.place = place
    reward.on_text = Steps()
    return reward
