"""One training step, stage by stage: recover the clean latent, score it, bring the gradient back.

The ComfyUI nodes call these one by one; `run.py` strings them together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .direct_align import euler_step, inject, per_sample, recover, recovery_slope
from .models import Decoder, FlowModel, Pullback
from .objective import Objective
from .rewards import Reward, score_words
from .schedule import Branch


@dataclass(frozen=True)
class Noised:
    """Stage 1, for B samples: clean latents, the noise prior (both (B, C, H, W)), and both branches."""

    x0: Tensor
    noise: Tensor
    branches: tuple[Branch, Branch]


@dataclass(frozen=True)
class Score:
    """What the reward said of one recovered batch, and the way back to the adapter.

    positive, negative: (B,) rewards with either word; loss: (B,); image: (B, 3, H, W) in [0, 1].
    clipped: share of pixels outside [0, 1], which carry no gradient.
    gradient: of the summed loss at the recovered latent.
    pull(weight): adds `weight` times the gradient to the `.grad` of the adapter's parameters.
    """

    branch: Branch
    positive: Tensor
    negative: Tensor
    loss: Tensor
    image: Tensor
    clipped: float
    gradient: Tensor
    pull: Callable[[float], Any]


@torch.no_grad()  # x0 and the noise are constants; the flow model turns gradients on for itself
def one_step_recover(flow: FlowModel, cond: Any, noised: Noised, branch: Branch) -> Pullback:
    """Stages 1 to 3: the clean latent that one step of the model leads to, and the way back."""
    x = inject(noised.x0, noised.noise, branch.sigma_in)
    velocity = flow.velocity(x, branch.sigma_in, cond)
    x = euler_step(x, velocity.value, branch.sigma_in, branch.sigma_out)
    slope = per_sample(recovery_slope(branch.sigma_in, branch.sigma_out), x)
    return Pullback(recover(x, noised.noise, branch.sigma_out), lambda gradient: velocity.pull(slope * gradient))


def score_recovered(
    recovered: Pullback,
    branch: Branch,
    decoder: Decoder,
    reward: Reward,
    objective: Objective,
    prompts: list[str],
    update: int,
) -> Score:
    """Stage 4: decode, ask the reward with both words, and bring the gradient back to the latent."""
    decoded = decoder.decode(recovered.value)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = decoded.value.clone().requires_grad_()
        image = pixels.clamp(0, 1)
        positive, negative = score_words(reward, image, *objective.texts(prompts, update), update)
        loss = objective.loss(branch, positive, negative)
        (pixel_gradient,) = torch.autograd.grad(loss.sum(), pixels)
    gradient = decoded.pull(pixel_gradient)
    return Score(
        branch=branch,
        positive=positive.detach(),
        negative=negative.detach(),
        loss=loss.detach(),
        image=image.detach(),
        clipped=(pixels != image).float().mean().item(),
        gradient=gradient,
        pull=lambda weight: recovered.pull(weight * gradient),
    )


def saturation(images: Tensor) -> float:
    """Mean HSV saturation of images (B, 3, H, W) in [0, 1]; over-optimised rewards drive it up."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean().item()


def describe(scores: list[Score]) -> dict[str, float]:
    """The numbers of one update, averaged over its samples and branches."""
    samples = [len(s.loss) for s in scores]

    def mean(values: Iterable[float]) -> float:
        return sum(value * n for value, n in zip(values, samples)) / sum(samples)

    return {
        "loss": mean(s.loss.mean().item() for s in scores),
        "reward_positive": mean(s.positive.mean().item() for s in scores),
        "reward_negative": mean(s.negative.mean().item() for s in scores),
        "words_gap": mean((s.positive - s.negative).mean().item() for s in scores),
        "saturation": mean(saturation(s.image) for s in scores),
        "clipped": mean(s.clipped for s in scores),
        "sigma": mean(s.branch.sigma_out.mean().item() for s in scores),
        "weight": mean(s.branch.weight.mean().item() for s in scores),
    }
