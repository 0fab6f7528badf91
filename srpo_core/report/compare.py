"""Pictures of two models from the same noise: what a reward says of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..algorithm.objective import Objective
from ..language import called, plural, say_many
from ..rewards import PreparedReward, Reward, name_of
from .measures import (
    ABOUT_CURVATURE,
    ABOUT_FEW_STEPS,
    ABOUT_GRID,
    CURVATURE,
    FEW_STEP_ERROR,
    MEASURES,
    about_diversity,
    few_step_error,
    measure_pictures,
    shown_number,
)
from .numbers import digits_for, number
from .reward_table import ask_for, score_table


@dataclass(frozen=True)
class PictureScores:
    """The scores that a reward gave.

    name: what the number is called. values: (2, N) float64, before and after; may hold NaN.
    note: what the number is, a sentence.
    """

    name: str
    values: Tensor
    note: str = ""

    @property
    def sign(self) -> str:
        return "+" if self.name == "words-gap" else ""

    def show(self, value: float) -> str:
        return number(value, digits_for(self.values), self.sign)


@dataclass(frozen=True, kw_only=True)
class ManySteps:
    """The pictures of a comparison once more, by more steps of the sampler; before, after: (N, H, W, 3) in [0, 1]."""

    steps: int
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Comparison:
    """N = prompts x seeds pictures of each model, all seeds of the first prompt first.

    before, after: (N, H, W, 3) in [0, 1]. reward: by whose features they are compared, if it has some; device: where
    it is given them. curvatures: how far the paths of either bend, where that is known; see `Path`. many: what they
    are held against, to see whether few steps suffice.
    """

    prompts: list[str]
    seeds: list[int]
    before: Tensor
    after: Tensor
    scores: PictureScores | None = None
    reward: Reward | None = None
    device: torch.device | str = "cpu"
    curvatures: tuple[float | None, float | None] = (None, None)
    many: ManySteps | None = None

    @cached_property
    def measured(self) -> list[Mapping[str, float]]:
        """The numbers of the pictures before, and of those after."""
        prompts = [i for i, _ in enumerate(self.prompts) for _ in self.seeds]
        measured: list[Mapping[str, float]] = [
            measure_pictures(images, prompts, self.reward, device=self.device, curvature=curvature)
            for images, curvature in zip((self.before, self.after), self.curvatures)
        ]
        if self.many is None:
            return measured
        return [{**numbers, FEW_STEP_ERROR: off.mean().item()} for numbers, off in zip(measured, self.few_step_errors)]

    @cached_property
    def few_step_errors(self) -> Tensor:
        """(2, N): of the pictures before and after, each held against its own by many steps."""
        if self.many is None:
            return torch.full((2, len(self.before)), torch.nan)
        before = few_step_error(self.before, self.many.before)
        return torch.stack([before, few_step_error(self.after, self.many.after)])

    @property
    def notes(self) -> list[str]:
        """What the numbers are, sentences."""
        scores = [self.scores.note] if self.scores and self.scores.note else []
        several = "diversity" in self.measured[0]
        notes = [*scores, about_diversity(self.reward) if several else "Diversity takes two seeds of a prompt."]
        if any(name.startswith("grid") for name in self.measured[0]):
            notes.append(ABOUT_GRID)
        if CURVATURE in self.measured[0]:
            notes.append(ABOUT_CURVATURE)
        if self.many:
            notes.append(ABOUT_FEW_STEPS.format(steps=self.many.steps))
        return notes

    @cached_property
    def means(self) -> list[tuple[str, str, str]]:
        """What is measured, its mean before, its mean after: the score, if a reward was asked, and the numbers."""
        before, after = self.measured
        means = [(name, shown_number(name, value), shown_number(name, after[name])) for name, value in before.items()]
        if self.scores:
            score_before, score_after = map(self.scores.show, self.scores.values.mean(1).tolist())
            means.insert(0, (self.scores.name, score_before, score_after))
        return means

    def summary(self) -> str:
        """What became of the pictures, in one sentence without an end."""
        means = ", ".join(f"{called(name, MEASURES)} {before} -> {after}" for name, before, after in self.means)
        return say_many(len(self.before), "{count} picture: {means}", "{count} pictures: {means}", means=means)


@torch.no_grad()
def score_pictures(
    comparison: Comparison,
    reward: Reward,
    objective: Objective | None,
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] = lambda pictures: None,
) -> PictureScores:
    """Every picture's words-gap with the objective's words; without an objective the score of its prompt alone.

    A reward without text gives its one score. on_progress: called with the number of pictures of each part that is
    done, of 2 N; what it raises ends the work. Raises ValueError for a reward that gives another shape.
    """
    words = (objective.positive, objective.negative) if objective else ()
    asked = [ask_for(reward, prompt, *words) for prompt in comparison.prompts]
    if isinstance(reward, PreparedReward):  # all texts at once: the table below finds them known
        reward.prepare(list(dict.fromkeys(column.text for columns in asked for column in columns)))
    rows = zip(*(images.tensor_split(len(asked)) for images in (comparison.before, comparison.after)))
    tables = [
        score_table(reward, torch.cat(row), columns, device=device, on_progress=on_progress)
        for row, columns in zip(rows, asked)
    ]
    values = torch.cat([table.merit.unflatten(0, (2, -1)) for table in tables], 1)
    name = name_of(reward)
    if objective and tables[0].has_gap:
        positive = plural(len(objective.positive), "word")
        negative = plural(len(objective.negative), "negative word")
        return PictureScores("words-gap", values, f"Words-gap of {name}: mean over {positive} - mean over {negative}.")
    return PictureScores(name, values)
