"""One training step, stage by stage: recover the clean latent, score it, bring the gradient back.

The ComfyUI nodes call these one by one; `run.py` strings them together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .direct_align import euler_step, inject, per_sample, recover, recovery_slope
from .guard import NO_GUARD, Guard, norm_ratio
from .models import Decoder, FlowModel
from .rewards import score_words
from .scaled import gradient_of_sum
from .schedule import Branch
from .terms import Answer, Spread, Term


@dataclass(frozen=True)
class Noised:
    """Stage 1, for B samples: clean latents, the noise prior (both (B, C, H, W)), and both branches."""

    x0: Tensor
    noise: Tensor
    branches: tuple[Branch, Branch]


@dataclass(frozen=True)
class Compared:
    """The first `count` samples of a batch, with their conditioning: those that are held against the frozen model."""

    count: int
    cond: Any


@dataclass(frozen=True)
class Recovered:
    """Stages 1 to 3: the clean latents (B, C, H, W) that one step of the model leads to, and the way back.

    pull(gradient, weight): adds `weight` times the gradient of a loss to the `.grad` of the adapter's parameters,
        given that loss's gradient at `value`; the guard's is added to it.
    velocity_ratio, guard: (count,) norm ratio and guard's loss of the compared samples; None where none was compared.
    """

    value: Tensor
    pull: Callable[[Tensor, float], Any]
    velocity_ratio: Tensor | None = None
    guard: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """What the rewards said of one recovered batch, and the way back to the adapter.

    answers: one for each reward; loss: (B,), theirs weighed and added; image: (B, 3, H, W) in [0, 1].
    clipped: (), share of pixels outside [0, 1], which carry no gradient.
    gradient: of the summed loss at the recovered latent.
    pull(weight): adds `weight` times the gradient to the `.grad` of the adapter's parameters.
    """

    branch: Branch
    answers: tuple[Answer, ...]
    loss: Tensor
    image: Tensor
    clipped: Tensor
    gradient: Tensor
    recovered: Recovered

    def pull(self, weight: float):
        self.recovered.pull(self.gradient, weight)


@torch.no_grad()  # x0 and the noise are constants; the flow model turns gradients on for itself
def one_step_recover(
    flow: FlowModel,
    cond: Any,
    noised: Noised,
    branch: Branch,
    compared: Compared | None = None,
    guard: Guard = NO_GUARD,
) -> Recovered:
    """Stages 1 to 3 for one branch. A guard is at work on the compared samples."""
    x = inject(noised.x0, noised.noise, branch.sigma_in)
    velocity = flow.velocity(x, branch.sigma_in, cond)
    slope = per_sample(recovery_slope(branch.sigma_in, branch.sigma_out), x)
    stepped = euler_step(x, velocity.value, branch.sigma_in, branch.sigma_out)
    value = recover(stepped, noised.noise, branch.sigma_out)
    if compared is None:
        return Recovered(value, lambda gradient, weight: velocity.pull(slope * (weight * gradient)))

    part = slice(compared.count)
    frozen = flow.frozen_velocity(x[part], branch.sigma_in[part], compared.cond)
    loss, away = guard.gradient(velocity.value[part], frozen)

    def pull(gradient: Tensor, weight: float):
        gradient = slope * (weight * gradient)
        gradient[part] += weight * away
        velocity.pull(gradient)

    return Recovered(value, pull, norm_ratio(velocity.value[part], frozen), loss)


@torch.inference_mode(False)
def score_recovered(
    recovered: Recovered,
    branch: Branch,
    decoder: Decoder,
    terms: Sequence[Term],
    prompts: list[str],
    update: int,
    spreads: Mapping[str, Spread] = MappingProxyType({}),
) -> Score:
    """Stage 4: decode, ask the rewards with both words, and bring the gradient back to the latent.

    spreads: of the normalised rewards so far, by name.
    """
    decoded = decoder.decode(recovered.value)
    pixels = decoded.value.clone()
    image = pixels.clamp(0, 1)
    answers, loss, gradient = [], pixels.new_zeros(len(pixels)), torch.zeros_like(image)
    for term in terms:
        answer, image_gradient = ask(term, branch, image, prompts, update)
        factor = term.factor(spreads, answer)
        answers.append(answer)
        if factor:
            loss = loss + factor * answer.loss.to(loss)
            gradient += factor * image_gradient
    latent_gradient = decoded.pull(gradient * (pixels == image))  # a clipped pixel passes nothing on
    return Score(
        branch=branch,
        answers=tuple(answers),
        loss=loss,
        image=image,
        clipped=(pixels != image).float().mean(),
        gradient=latent_gradient,
        recovered=recovered,
    )


def ask(term: Term, branch: Branch, image: Tensor, prompts: list[str], update: int) -> tuple[Answer, Tensor | None]:
    """What one reward says of images (B, 3, H, W) in [0, 1], and its loss's gradient there; None if it watches."""
    with torch.set_grad_enabled(term.weight != 0):
        seen = image.detach().requires_grad_(term.weight != 0)
        words = term.objective.texts(prompts, update)
        scores = score_words(term.reward, seen, *words, update)
        positive, negative = (s.to(torch.promote_types(s.dtype, torch.float32)) for s in scores)
        loss = term.objective.loss(branch, positive, negative)
        gradient = gradient_of_sum(loss, seen) if term.weight else None
    return Answer(term.name, positive.detach(), negative.detach(), loss.detach()), gradient


def saturation(images: Tensor) -> Tensor:
    """(), mean HSV saturation of images (B, 3, H, W) in [0, 1]; over-optimised rewards drive it up."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean()


@dataclass(frozen=True)
class Seen:
    """What an update keeps of a score whose gradient is pulled: no picture, so that many take no memory.

    samples: B; numbers: means over them, each (); answers, velocity_ratio, guard: the score's.
    """

    samples: int
    numbers: dict[str, Tensor]
    answers: tuple[Answer, ...]
    velocity_ratio: Tensor | None
    guard: Tensor | None


def look(score: Score) -> Seen:
    branch, recovered = score.branch, score.recovered
    numbers = {
        "loss": score.loss.mean(),
        "saturation": saturation(score.image),
        "clipped": score.clipped,
        "sigma": branch.sigma_out.mean(),
        "weight": branch.weight.mean(),
    }
    return Seen(len(score.loss), numbers, score.answers, recovered.velocity_ratio, recovered.guard)


def describe(seen: list[Seen]) -> dict[str, float]:
    """The numbers of one update, averaged over its samples and branches; those of named rewards end in "/name"."""
    samples = [each.samples for each in seen]
    numbers = {name: mean((each.numbers[name].item() for each in seen), samples) for name in seen[0].numbers}
    if compared := [each for each in seen if each.velocity_ratio is not None]:
        numbers["velocity_ratio"] = torch.cat([each.velocity_ratio for each in compared]).mean().item()
        numbers["guard"] = torch.cat([each.guard for each in compared]).mean().item()
    answers = [answer for each in seen for answer in each.answers]
    for name in dict.fromkeys(answer.name for answer in answers):
        numbers |= describe_answers([answer for answer in answers if answer.name == name], f"/{name}" if name else "")
    return numbers


def describe_answers(answers: list[Answer], suffix: str) -> dict[str, float]:
    samples = [len(answer.loss) for answer in answers]
    positive = mean((answer.positive.mean().item() for answer in answers), samples)
    negative = mean((answer.negative.mean().item() for answer in answers), samples)
    numbers = {"reward_positive": positive, "reward_negative": negative, "words_gap": positive - negative}
    return {f"{key}{suffix}": value for key, value in numbers.items()}


def mean(values: Iterable[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights)) / sum(weights)
