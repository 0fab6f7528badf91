"""The SRPO objective: one reward, asked with a positive and with a negative control word.

Words go to the reward only, never to generation (arXiv 2509.06942, section 3.2).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number
from .control_words import PRESETS, with_word
from .noise_levels import GRID, Branch
from .routes import Pairs

ORDERS = ("rotate", "random")
POSITIVE, NEGATIVE = PRESETS["realism"]
BRANCHES = {"both": ("denoise", "inversion"), "denoise": ("denoise",), "inversion": ("inversion",)}


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How much heavier than the other word a branch weighs its own, by noise level; below 0, how much lighter.

    Raises ValueError for what is no finite number of at least -1, where its own word would turn against itself.
    """

    low_noise: float
    high_noise: float

    def __post_init__(self):
        check_number("the strength at low noise", self.low_noise, -1)
        check_number("the strength at high noise", self.high_noise, -1)

    def at(self, grid_index: Tensor) -> Tensor:
        """`k(i) = low + (high - low) i / (N - 1)` for (B,) positions in the window; float64."""
        return self.low_noise + (self.high_noise - self.low_noise) * grid_index.double() / (GRID - 1)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """SRPO's objective (see `protocols.TrainingObjective`). The defaults are the HPS run's.

    positive, negative: control words.
    order: which of them update u (from 1) uses: "rotate" is `words[u % len(words)]`, as published, "random" draws
        for each sample.
    denoise_strength, inversion_strength: how heavy each branch weighs its own word; in the nodes, "reward" and
        "penalty".
    threshold: rewards above it have no gradient, in the units of the reward.
    branches: "both", "denoise" or "inversion".
    Raises ValueError for a list with a blank word, an empty list, a threshold that is no finite number, or an unknown
    branch or order.
    """

    positive: tuple[str, ...] = POSITIVE
    negative: tuple[str, ...] = NEGATIVE
    denoise_strength: Strength = Strength(low_noise=0.10, high_noise=0.25)
    inversion_strength: Strength = Strength(low_noise=0.30, high_noise=0.01)
    threshold: float = 0.7
    branches: str = "both"
    order: str = "rotate"

    route = Pairs()

    @property
    def forwards(self) -> int:
        return len(BRANCHES[self.branches])

    def __post_init__(self):
        _check_words("positive", self.positive, POSITIVE[0])
        _check_words("negative", self.negative, NEGATIVE[1])
        check_number("threshold", self.threshold)
        if self.branches not in BRANCHES:
            raise ValueError(f'branches is "{self.branches}": choose one of {", ".join(BRANCHES)}.')
        if self.order not in ORDERS:
            raise ValueError(f'order is "{self.order}": choose one of {", ".join(ORDERS)}.')

    def trains(self, branch: Branch) -> bool:
        return branch.name in BRANCHES[self.branches]

    def texts(self, prompts: list[str], update: int, seeds: Sequence[int] = ()) -> tuple[list[str], list[str]]:
        """What the reward reads in update `update` (the first is 1): positive and negative texts.

        seeds: those of the samples, for words that are drawn; without them all draw the same.
        """
        words = [self.words(update, seed) for seed in seeds or [0] * len(prompts)]
        positive, negative = (
            [with_word(pair[side], prompt) for pair, prompt in zip(words, prompts)] for side in (0, 1)
        )
        return positive, negative

    def words(self, update: int, seed: int = 0) -> tuple[str, str]:
        """The positive and the negative word; a draw depends on the update and the sample's seed alone."""
        if self.order == "random":
            draw = random.Random(f"words {update} {seed}")
            return draw.choice(self.positive), draw.choice(self.negative)
        return self.positive[update % len(self.positive)], self.negative[update % len(self.negative)]

    def relative_reward(self, branch: Branch, positive: Tensor, negative: Tensor) -> Tensor:
        """(B,): the branch's own word, weighed `1 + k`, minus the other word."""
        if branch.name == "denoise":
            return (1 + self.denoise_strength.at(branch.grid_index).to(positive)) * positive - negative
        return (1 + self.inversion_strength.at(branch.grid_index).to(negative)) * negative - positive

    def loss(self, branch: Branch, positive: Tensor, negative: Tensor) -> Tensor:
        """(B,): the hinge `relu(threshold - r) / 2` of each sample."""
        return torch.relu(self.threshold - self.relative_reward(branch, positive, negative)) / 2


def parse_words(text: str) -> tuple[str, ...]:
    """Control words as people type them: one per line or separated by commas; lines that begin with # are left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return tuple(word.strip() for word in "\n".join(lines).replace(",", "\n").splitlines() if word.strip())


def _check_words(side: str, words: Sequence[str], example: str):
    """Raises ValueError, a sentence, where there are none, or one is blank."""
    if not words:
        raise ValueError(f'There are no {side} words: write at least one word, such as "{example}".')
    if not all(word.strip() for word in words):
        raise ValueError(f"One of the {side} words is blank, {list(words)}: take it out.")
