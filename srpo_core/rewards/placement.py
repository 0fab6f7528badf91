"""Where a reward's towers compute, and who hears how far it is: what a host that manages memory gives a reward."""

from collections.abc import Callable

import torch
from torch import nn

Placement = Callable[[nn.Module], torch.device]  # brings a tower to where it computes, and returns that device
OnText = Callable[[int, int], None]  # called before each text that is encoded: how many are done, and of how many


def where_it_is(tower: nn.Module) -> torch.device:
    """The placement without a host: a tower computes on the device that it is on."""
    return next(tower.parameters()).device


def unheard(done: int, total: int):
    """The `on_text` without a host."""
