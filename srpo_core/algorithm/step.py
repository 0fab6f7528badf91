"""One training step, stage by stage: recover the clean latent, score it, bring the gradient back.

The ComfyUI nodes call these one by one; `run/update.py` strings them together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..rewards import name_of, score_words
from .direct_align import euler_step, inject, per_sample, recover, recovery_slope
from .guard import NO_GUARD, Guard, norm_ratio
from .noise_levels import Branch
from .protocols import Decoder, FlowModel
from .scaling import gradient_of_sum
from .terms import Answer, Spread, Term


@dataclass(frozen=True)
class Noised:
    """Stage 1, for B samples: clean latents, the noise prior (both (B, C, H, W)), and both branches.

    seeds: B, which tell the samples apart: what is drawn for one later follows from its own, whatever shares a batch
    with it. Without them all draw the same.
    """

    x0: Tensor
    noise: Tensor
    branches: tuple[Branch, Branch]
    seeds: tuple[int, ...] = ()


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
    parameters: those of the adapter, by name; none of a model without one.
    seeds: the samples', as in Noised.
    velocity_ratio, guard_loss: (count,), the norm ratio and the guard's loss of the compared samples; None where none
        was compared.
    """

    value: Tensor
    pull: Callable[[Tensor, float], Any]
    parameters: Mapping[str, Parameter]
    seeds: tuple[int, ...] = ()
    velocity_ratio: Tensor | None = None
    guard_loss: Tensor | None = None

    def weighed(self, share: float) -> "Recovered":
        """The same, with so much of the gradient."""
        return replace(self, pull=lambda gradient, weight: self.pull(gradient, share * weight))


@dataclass(frozen=True)
class Held:
    """The compared samples' velocity, held against the frozen model's: see `guard.py`.

    ratio, loss: (count,). away: (count, C, H, W), the gradient of the summed loss at the velocity.
    """

    ratio: Tensor
    loss: Tensor
    away: Tensor


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the rewards answered to one recovered batch, and the way back to the adapter.

    answers: one for each reward; loss: (B,), theirs weighed and added; image: (B, 3, H, W) in [0, 1].
    clipped: (), share of pixels outside [0, 1], which carry no gradient.
    gradient: that of the summed loss, at the recovered latent.
    update: the number of the update that it was made for, and so with which weights.
    trains: whether one of the rewards has a weight; else they only watch.
    pull(weight): adds `weight` times the gradient to the `.grad` of the adapter's parameters.
    """

    branch: Branch
    answers: tuple[Answer, ...]
    loss: Tensor
    image: Tensor
    clipped: Tensor
    gradient: Tensor
    recovered: Recovered
    update: int
    trains: bool

    def pull(self, weight: float):
        self.recovered.pull(self.gradient, weight)


def step_and_recover(x: Tensor, velocity: Tensor, noise: Tensor, branch: Branch) -> Tensor:
    """Stages 2 and 3: the clean latent (B, C, H, W) that this velocity leads to from x, at the branch's `sigma_in`.

    Where `sigma_out` is 0 no noise is taken out: that is plain one-step prediction, `x - sigma_in velocity`.
    """
    stepped = euler_step(x, velocity, branch.sigma_in, branch.sigma_out)
    return recover(stepped, noise, branch.sigma_out)


@torch.no_grad()  # x0 and the noise are constants; the flow model turns gradients on for itself
def one_step_recover(
    flow: FlowModel,
    cond: Any,
    noised: Noised,
    branch: Branch,
    *,
    compared: Compared | None = None,
    guard: Guard = NO_GUARD,
) -> Recovered:
    """Stages 1 to 3 for one branch. A guard is at work on the compared samples."""
    x = inject(noised.x0, noised.noise, branch.sigma_in)
    velocity = flow.velocity(x, branch.sigma_in, cond)
    slope = per_sample(recovery_slope(branch.sigma_in, branch.sigma_out), x)
    value = step_and_recover(x, velocity.value, noised.noise, branch)
    if compared is None:
        return Recovered(
            value, lambda gradient, weight: velocity.pull(slope * (weight * gradient)), flow.parameters, noised.seeds
        )

    part = slice(compared.count)
    held = hold(flow, x[part], branch.sigma_in[part], velocity.value[part], cond=compared.cond, guard=guard)

    def pull(gradient: Tensor, weight: float):
        gradient = slope * (weight * gradient)
        gradient[part] += weight * held.away
        velocity.pull(gradient)

    return Recovered(value, pull, flow.parameters, noised.seeds, velocity_ratio=held.ratio, guard_loss=held.loss)


def hold(flow: FlowModel, x: Tensor, sigma: Tensor, velocity: Tensor, *, cond: Any, guard: Guard) -> Held:
    """A velocity (B, C, H, W) at x, sigma (B,) and cond, held against the frozen model's there."""
    frozen = flow.frozen_velocity(x, sigma, cond)
    loss, away = guard.gradient(velocity, frozen)
    return Held(norm_ratio(velocity, frozen), loss, away)


@torch.inference_mode(False)
def score_recovered(
    recovered: Recovered,
    branch: Branch,
    decoder: Decoder,
    terms: Sequence[Term],
    *,
    prompts: list[str],
    update: int,
    spreads: Mapping[str, Spread] = MappingProxyType({}),
) -> Score:
    """Stage 4: decode, ask the rewards with both words, and bring the gradient back to the latent.

    spreads: those of the normalised rewards so far, by name.
    """
    decoded = decoder.decode(recovered.value)
    pixels = decoded.value.clone()
    image = pixels.clamp(0, 1)
    answers = []
    loss = pixels.new_zeros(len(pixels))
    gradient = torch.zeros_like(image)
    for term in terms:
        answer, image_gradient = ask(term, branch, image, prompts=prompts, update=update, seeds=recovered.seeds)
        answers.append(answer)
        if image_gradient is not None:
            factor = term.factor(spreads)
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
        update=update,
        trains=any(term.trains for term in terms),
    )


@torch.inference_mode(False)
def first_answers(
    recovered: Recovered, branch: Branch, decoder: Decoder, terms: Sequence[Term], *, prompts: list[str], update: int
) -> list[Answer]:
    """The answers that `score_recovered` will get, without a gradient: for the spread of an update that has no past."""
    image = decoder.decode(recovered.value).value.clamp(0, 1)
    watching = [replace(term, weight=0.0) for term in terms]
    return [ask(term, branch, image, prompts=prompts, update=update, seeds=recovered.seeds)[0] for term in watching]


def ask(
    term: Term, branch: Branch, image: Tensor, *, prompts: list[str], update: int, seeds: Sequence[int] = ()
) -> tuple[Answer, Tensor | None]:
    """A reward's answer to images (B, 3, H, W) in [0, 1], and its loss's gradient there; None if it watches."""
    with torch.set_grad_enabled(term.trains):
        seen = image.detach().requires_grad_(term.trains)
        words = term.objective.texts(prompts, update, seeds)
        scores = score_words(term.reward, seen, *words, update=update, seeds=seeds)
        positive, negative = (s.to(torch.promote_types(s.dtype, torch.float32)) for s in scores)
        loss = term.objective.loss(branch, positive, negative)
        if term.trains and not loss.requires_grad:
            raise ValueError(
                f"The score of {name_of(term.reward)} has no gradient at the pixels, so that nothing can be learned "
                "from it: compute it with torch from the images as they come, or let it only watch (weight 0)."
            )
        gradient = gradient_of_sum(loss, seen) if term.trains else None
    return Answer(term.name, positive.detach(), negative.detach(), loss.detach()), gradient


def normalise(scores: Sequence[Score], spreads: Mapping[str, Spread]) -> list[Score]:
    """Scores of one reward each, divided by the spread of its answers in the run.

    A reward of which the run knows nothing yet has the spread of all its answers in these scores, so give those of
    the whole update.
    """
    here: dict[str, Spread] = {}
    for answer in (answer for score in scores for answer in score.answers):
        answer.add_to(here.setdefault(answer.name, Spread()))
    stds = [(here | dict(spreads))[score.answers[0].name].std for score in scores]
    return [replace(s, loss=s.loss / std, gradient=s.gradient / std) for s, std in zip(scores, stds)]
