"""What a training step would see of one picture, over the noise levels; nothing is trained.

From each noise level the model makes one step. Plain one-step prediction goes all the way down on the model's word,
`x - sigma velocity`, and lets `sigma` of the model's error through. Direct-Align goes a short step and takes out the
noise that it put in itself, which lets `|ds| / (1 - sigma_out)` of it through (arXiv 2509.06942, section 3.1).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .direct_align import inject
from .noise_levels import Branch, Window
from .protocols import Decoder, FlowModel
from .step import Recovered, ask, score_recovered, step_and_recover
from .terms import Answer, Term

LEAST_LEVELS = 4  # one above the window, two in it, one below


@dataclass(frozen=True, kw_only=True)
class Level:
    """One picture at one noise level, latents (1, C, H, W).

    branch: Direct-Align's step from there. plain: by one-step prediction. recovered: with the noise prior, from the
    same noised latent and the same velocity.
    """

    branch: Branch
    noised: Tensor
    plain: Tensor
    recovered: Tensor


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the reward is asked of each picture.

    update: the number of the update whose words are used. seed: the sample's, from which follows what is drawn for it.
    """

    term: Term
    prompt: str
    update: int = 1
    seed: int = 0

    @property
    def texts(self) -> tuple[str, str]:
        """What the reward reads: with the positive word, with the negative word."""
        positive, negative = self.term.objective.texts([self.prompt], self.update, (self.seed,))
        return positive[0], negative[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """A latent as the reward sees it.

    image: (3, H, W) in [0, 1], on the CPU. answer: the reward's. gradient: the norm of its loss's gradient at the
    latent. Both are None where they were not asked for.
    """

    image: Tensor
    answer: Answer | None = None
    gradient: float | None = None


def swept_sigmas(window: Window, count: int, noisiest: float = 1.0) -> list[float]:
    """`count` noise levels, noisiest first: one above the window, about a third below it, the rest over all of it.

    noisiest: the highest that the model has; a window that begins there has none above. One that ends at 0 has none
    below. Raises ValueError for less than LEAST_LEVELS.
    """
    if count < LEAST_LEVELS:
        raise ValueError(f"count is {count}: give at least {LEAST_LEVELS}, to see the window and what is around it.")
    above = [(noisiest + window.sigma_max) / 2] if noisiest > window.sigma_max else []
    below = max(1, count // 3) if window.sigma_min else 0
    within = count - len(above) - below + (not window.sigma_min)  # at 0 itself there is no noise to take out
    inside = torch.linspace(window.sigma_max, window.sigma_min, within, dtype=torch.float64).tolist()
    lower = [window.sigma_min * i / (below + 1) for i in range(below, 0, -1)]
    return [*above, *filter(None, inside), *lower]


def denoise_branch(window: Window, sigma: float) -> Branch:
    """The step down from `sigma` in (0, 1) that is a tenth of the window wide, as training's are but near its ends."""
    return window.steps_from(torch.tensor([sigma], dtype=torch.float64))[0]


@torch.no_grad()
def recover_level(flow: FlowModel, cond: Any, x0: Tensor, noise: Tensor, *, branch: Branch) -> Level:
    """Ask the model once, at the branch's `sigma_in`; x0 and noise are (1, C, H, W).

    Raises ValueError where the model's velocity is not finite.
    """
    x = inject(x0, noise, branch.sigma_in)
    velocity = flow.sampled_velocity(x, branch.sigma_in, cond)
    if not velocity.isfinite().all():
        raise ValueError(
            f"The model's velocity at {branch.sigma_in.item():.4f} of noise holds NaN or infinite numbers: load the "
            "model in another weight_dtype, and take off what patches it, one after the other, to find the cause."
        )
    plain = replace(branch, sigma_out=torch.zeros_like(branch.sigma_out))
    return Level(
        branch=branch,
        noised=x,
        plain=step_and_recover(x, velocity, noise, plain),
        recovered=step_and_recover(x, velocity, noise, branch),
    )


def view_latent(
    latent: Tensor, branch: Branch, decoder: Decoder, question: Question | None = None, *, gradient: bool = False
) -> View:
    """Decode a latent (1, C, H, W) and ask, as a training step at this branch would.

    gradient: whether the loss is also brought back to the latent.
    """
    if question is None:
        return View(image=_picture(decoder.decode(latent).value))
    prompts = [question.prompt]
    seeds = (question.seed,)
    if gradient:
        recovered = Recovered(latent, _pull_nothing, {}, seeds)
        score = score_recovered(recovered, branch, decoder, [question.term], prompts=prompts, update=question.update)
        return View(image=_picture(score.image), answer=score.answers[0], gradient=score.gradient.norm().item())
    watching = replace(question.term, weight=0.0)
    image = decoder.decode(latent).value.clamp(0, 1)
    answer, _ = ask(watching, branch, image, prompts=prompts, update=question.update, seeds=seeds)
    return View(image=_picture(image), answer=answer)


def _picture(images: Tensor) -> Tensor:
    return images[0].clamp(0, 1).float().cpu()


def _pull_nothing(gradient: Tensor, weight: float):
    """The gradient ends at the latent: nothing is trained."""


def distance(latent: Tensor, x0: Tensor) -> float:
    """The RMS of latent - x0, over the RMS of x0; both (1, C, H, W)."""
    return ((latent - x0).norm() / x0.norm()).item()
