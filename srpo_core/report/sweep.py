"""What one picture becomes over the noise levels: the numbers, and what is to be seen in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..algorithm.noise_levels import Branch, Window
from ..algorithm.protocols import Decoder, FlowModel
from ..algorithm.sweep import (
    Level,
    Question,
    View,
    denoise_branch,
    distance,
    recover_level,
    swept_sigmas,
    view_latent,
)
from ..language import say
from ..rewards import name_of, reads_text
from .numbers import digits_for, number


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A picture at N noise levels, noisiest first.

    x0: the clean latent, (1, C, H, W); clean: what the reward sees of it. plain, recovered, noised: the levels' views.
    question: what the reward was asked, if there is one.
    """

    window: Window
    x0: Tensor
    clean: View
    levels: Sequence[Level]
    noised: Sequence[View]
    plain: Sequence[View]
    recovered: Sequence[View]
    question: Question | None = None

    @property
    def sigmas(self) -> list[float]:
        return [level.branch.sigma_in.item() for level in self.levels]

    @property
    def trained(self) -> list[bool]:
        """Whether each level lies in the window."""
        return [self.window.sigma_min <= sigma <= self.window.sigma_max for sigma in self.sigmas]

    @cached_property
    def distances(self) -> Tensor:
        """(2, N) float64: how far the plain and the recovered latents are from the clean one; see `distance`."""
        rows = [[distance(latent, self.x0) for latent in pair] for pair in zip(*map(_latents, self.levels))]
        return torch.tensor(rows, dtype=torch.float64)

    @cached_property
    def rewards(self) -> Tensor:
        """(2, 2, N) float64: with the positive and with the negative word, plain and recovered."""
        rows = [[_answers(view) for view in row] for row in (self.plain, self.recovered)]
        return torch.tensor(rows, dtype=torch.float64).permute(2, 0, 1)

    @cached_property
    def gaps(self) -> Tensor:
        """(2, N) float64: the words-gaps, plain and recovered."""
        return self.rewards[0] - self.rewards[1]

    @cached_property
    def clean_gap(self) -> float:
        positive, negative = _answers(self.clean)
        return positive - negative

    @property
    def has_gradients(self) -> bool:
        return self.recovered[0].gradient is not None

    @cached_property
    def gradients(self) -> Tensor:
        """(2, N) float64: the norms of the loss's gradient at the plain and at the recovered latents."""
        rows = [[view.gradient for view in row] for row in (self.plain, self.recovered)]
        return torch.tensor(rows, dtype=torch.float64)

    def inside(self, values: Tensor) -> float:
        """The mean over the levels in the window; values (N,)."""
        return values[torch.tensor(self.trained)].mean().item()

    def outside(self, values: Tensor) -> float:
        return values[~torch.tensor(self.trained)].mean().item()

    def summary(self) -> str:
        """Where the window lies, and what is seen inside and outside of it."""
        return " ".join(filter(None, [self._on_pictures(), self._on_words(), self._on_gradients(), self._on_faults()]))

    def _on_pictures(self) -> str:
        plain, recovered = (self.inside(row) for row in self.distances)
        return say(
            "The trained window, {high:.4f} to {low:.4f} of noise, holds {trained} of these {levels} noise levels. In "
            "it plain one-step prediction misses the clean latent by {plain:.2f} of its size, recovery with the noise "
            "prior by {recovered:.2f} (means).",
            high=self.window.sigma_max,
            low=self.window.sigma_min,
            trained=sum(self.trained),
            levels=len(self.levels),
            plain=plain,
            recovered=recovered,
        )

    def _on_words(self) -> str:
        if not self.question:
            return ""
        plain, recovered = self.gaps
        digits = digits_for(self.gaps)
        inside, outside, predicted, clean = (
            number(value, digits, "+")
            for value in (self.inside(recovered), self.outside(recovered), self.inside(plain), self.clean_gap)
        )
        return say(
            "The words-gap of {reward}: recovered {inside} in the window and {outside} outside, plain {predicted} in "
            "the window, the clean picture {clean}.",
            reward=name_of(self.question.term.reward),
            inside=inside,
            outside=outside,
            predicted=predicted,
            clean=clean,
        )

    def _on_gradients(self) -> str:
        if not self.has_gradients:
            return ""
        norms = self.gradients[1]
        text = say(
            "Gradient at the recovered latent: norm {inside:.3g} in the window, {outside:.3g} outside.",
            inside=self.inside(norms),
            outside=self.outside(norms),
        )
        if norms.any():
            return text
        nothing = say("It is 0 everywhere: the relative reward is above the objective's threshold, so nothing trains.")
        return f"{text} {nothing}"

    def _on_faults(self) -> str:
        """What is no number, and so not in the curves."""
        strange = int((~self.rewards.isfinite()).sum()) if self.question else 0
        strange += int((~self.gradients.isfinite()).sum()) if self.has_gradients else 0
        if not strange:
            return ""
        return say("{count} of the reward's numbers are not finite, and so are their means.", count=strange)

    def words(self) -> list[str]:
        """What the reward was asked, for people."""
        if not self.question:
            return []
        positive, negative = self.question.texts
        if not reads_text(self.question.term.reward):
            return ["Positive: the picture. Negative: the same picture with a little noise."]
        return [f'Positive: "{positive}". Negative: "{negative}".']


def make_sweep(
    flow: FlowModel,
    decoder: Decoder,
    x0: Tensor,
    noise: Tensor,
    *,
    cond: Any,
    window: Window,
    count: int,
    noisiest: float = 1.0,
    question: Question | None = None,
    gradient: bool = False,
    on_progress: Callable[[], Any] = lambda: None,
) -> Sweep:
    """Look at x0 (1, C, H, W) from `count` noise levels, with one noise of its shape.

    noisiest: the highest noise level that the model has. gradient: whether the loss is brought back to the latents.
    on_progress: called 1 + 4 count times, after each answer of the model and after each picture; what it raises ends
    the work. The model is done before the decoder and the
    reward begin, so that they need not share memory.
    Raises ValueError as `swept_sigmas` and `recover_level` do, and for a reward without gradient.
    """
    levels = []
    for sigma in swept_sigmas(window, count, noisiest):
        levels.append(recover_level(flow, cond, x0, noise, branch=denoise_branch(window, sigma)))
        on_progress()

    def look(latent: Tensor, branch: Branch, asked: Question | None, pulled: bool = False) -> View:
        view = view_latent(latent, branch, decoder, asked, gradient=pulled)
        on_progress()
        return view

    return Sweep(
        window=window,
        x0=x0,
        clean=look(x0, levels[0].branch, question),
        levels=levels,
        noised=[look(level.noised, level.branch, None) for level in levels],
        plain=[look(level.plain, level.branch, question, gradient) for level in levels],
        recovered=[look(level.recovered, level.branch, question, gradient) for level in levels],
        question=question,
    )


def _latents(level: Level) -> tuple[Tensor, Tensor]:
    return level.plain, level.recovered


def _answers(view: View) -> tuple[float, float]:
    """The reward with the positive and with the negative word."""
    if view.answer is None:
        raise ValueError("This view was made without a question, so there is no answer in it.")
    return view.answer.positive.item(), view.answer.negative.item()
