"""Rewards whose towers ComfyUI moves between devices and may evict, like any model of its own."""

from typing import TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...srpo_core.rewards.protocol import TowerReward, reads_text
from .patcher.loading import load_ordinary
from .progress import Steps

AnyReward = TypeVar("AnyReward", bound=TowerReward)


def place(tower: nn.Module) -> torch.device:
    """The host's placement: it loads this tower; returns the device that it computes on."""
    if patcher_of(tower) is None:
        tower.patcher = ModelPatcher(
            nn.ModuleDict({"tower": tower}),  # the patcher sets attributes that a transformers model refuses
            load_device=device_of(tower),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    load_ordinary(tower.patcher)
    return tower.patcher.load_device


def device_of(tower: nn.Module) -> torch.device:
    """Where `place` puts it."""
    patcher = patcher_of(tower)
    return comfy.model_management.get_torch_device() if patcher is None else patcher.load_device


def patcher_of(tower: nn.Module) -> ModelPatcher | None:
    """The one that `place` made. It lies on the tower, to go with it: a map of both would hold both for ever."""
    return getattr(tower, "patcher", None)


def managed(reward: AnyReward) -> AnyReward:
    """The same reward, its towers from now on in the hands of the host's memory management; it hears Cancel."""
    reward.place = place
    if reads_text(reward):
        reward.on_text = Steps()
    return reward
