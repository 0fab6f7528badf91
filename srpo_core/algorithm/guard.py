"""What holds a trained model near the frozen one, at the velocity: how far it is, and losses for being far."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number


def norm_ratio(velocity: Tensor, frozen: Tensor) -> Tensor:
    """(B,): the norm of each sample's velocity over that of the frozen model's; both (B, C, H, W).

    Reinforcement learning inflates it by 5 to 15 % (NormGuard, arXiv 2606.27771), and pictures get worse by that.
    """
    return velocity.flatten(1).norm(dim=1) / frozen.flatten(1).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Losses that are added to each branch's; 0 switches one off.

    norm_weight: the weight of the hinge `relu(ratio - 1)` on the norm ratio (NormGuard); a smaller velocity is free.
    distance_weight: the weight of the mean squared distance of the velocities, to which the KL divergence of one
    denoising step is proportional.
    Raises ValueError for what is no finite number of at least 0.
    """

    norm_weight: float = 0.0
    distance_weight: float = 0.0

    def __post_init__(self):
        check_number("norm_guard", self.norm_weight, 0)
        check_number("distance_guard", self.distance_weight, 0)

    def __bool__(self) -> bool:
        return bool(self.norm_weight or self.distance_weight)

    def loss(self, velocity: Tensor, frozen: Tensor) -> Tensor:
        """(B,), for velocities (B, C, H, W)."""
        distance = (velocity - frozen).square().flatten(1).mean(1)
        return self.norm_weight * torch.relu(norm_ratio(velocity, frozen) - 1) + self.distance_weight * distance

    @torch.inference_mode(False)
    def gradient(self, velocity: Tensor, frozen: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient at the velocity (B, C, H, W)."""
        with torch.enable_grad():
            leaf = velocity.detach().clone().requires_grad_()
            loss = self.loss(leaf, frozen.clone())
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


NO_GUARD = Guard()
