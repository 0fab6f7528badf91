"""A batch of pictures against a prompt and many words: the scores, the ranking, and where each word looks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithm.control_words import with_word
from ..rewards import PreparedReward, Reward, name_of, reads_text, score_all
from ..rewards.pixels import as_rgb
from .numbers import digits_for, number

MOST_COLUMNS = 100
PICTURES_AT_ONCE = 16
PIXELS_AT_ONCE = 2**24  # of pictures that are scored together: 192 MiB
MAPPED = 4  # so many of the best pictures get maps of where each word looks
BLUR = 0.035  # standard deviation of a map's smoothing, of its longer side


@dataclass(frozen=True)
class Column:
    """One question to the reward.

    title: its heading. text: what the reward reads. side: "plain" for the prompt alone, "positive" or "negative".
    """

    title: str
    text: str
    side: str = "plain"


def ask_for(reward: Reward, prompt: str, words: Sequence[str] = (), negative: Sequence[str] = ()) -> list[Column]:
    """The columns: the prompt, if there is one, then "<word>. <prompt>" for each word, as the objective asks it.

    A reward without text has one column, called after it. Raises ValueError where there is nothing to ask, for
    negative words without others, and for more than MOST_COLUMNS.
    """
    prompt = prompt.strip()
    if not reads_text(reward):
        return [Column(name_of(reward), prompt)]
    check_table_words(words, negative)
    columns = [Column("prompt", prompt)] if prompt else []
    for side, listed in (("positive", words), ("negative", negative)):
        columns += [Column(word, with_word(word, prompt), side) for word in listed]
    if not columns:
        raise ValueError(
            f"{name_of(reward)} compares pictures with text, and there is neither a prompt nor a word: "
            'write a prompt, or at least one word, for example "Natural-lighting".'
        )
    return columns


def check_table_words(words: Sequence[str], negative: Sequence[str]):
    """Raises ValueError for negative words that have nothing to stand against, and for too many words."""
    if negative and not words:
        raise ValueError(
            f"The negative words are {list(negative)}, and there are no words for them to stand against: write at "
            "least one word, or leave the negative words empty."
        )
    if len(words) + len(negative) >= MOST_COLUMNS:
        raise ValueError(
            f"There are {len(words) + len(negative)} words, and a table holds up to {MOST_COLUMNS - 1}: leave some "
            "out, or use a second table."
        )


@dataclass(frozen=True)
class Table:
    """columns: what was asked. values: the answers, (pictures, columns), float32 on the CPU; may hold NaN."""

    columns: list[Column]
    values: Tensor

    @property
    def has_gap(self) -> bool:
        return any(column.side == "negative" for column in self.columns)

    @cached_property
    def shares(self) -> Tensor:
        """(columns,) float64: how much each counts for the merit. 1 / words, -1 / negative words, the prompt nothing.

        Without any word the prompt counts alone.
        """
        sides = [column.side for column in self.columns]
        of_side = {"plain": 0.0 if "positive" in sides else 1.0, "positive": 1.0, "negative": -1.0}
        return torch.tensor([of_side[side] / sides.count(side) for side in sides], dtype=torch.float64)

    @cached_property
    def merit(self) -> Tensor:
        """(pictures,) float64: what they are ranked by.

        With negative words the words-gap, mean over words - mean over negative words; else the mean over words;
        without words the plain score.
        """
        return self.values.double() @ self.shares

    @property
    def merit_name(self) -> str:
        counted = [column.title for column in self.columns if column.side == "positive"] or [self.columns[0].title]
        if self.has_gap:
            return "words-gap"
        return counted[0] if len(counted) == 1 else f"mean of {len(counted)} words"

    @cached_property
    def ranking(self) -> list[int]:
        """Numbers of the pictures, counted from 0, best first; equal ones as they came, those without a number last."""
        finite = torch.where(self.merit.isfinite(), self.merit, -math.inf)
        return finite.argsort(descending=True, stable=True).tolist()

    def lines(self) -> list[str]:
        """The ranking for people, who count pictures from 1: "1. picture 3: 0.2741 (Detail)"."""
        digits = digits_for(self.merit)
        sign = "+" if self.has_gap else ""
        return [
            f"{rank}. picture {i + 1}: {number(self.merit[i].item(), digits, sign)} ({self.merit_name})"
            for rank, i in enumerate(self.ranking, 1)
        ]


@torch.inference_mode(False)
@torch.no_grad()
def score_table(
    reward: Reward,
    images: Tensor,
    columns: list[Column],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] = lambda pictures: None,
) -> Table:
    """Ask the reward every column's text of every picture, some pictures at a time.

    images: (N, H, W, C) in [0, 1], C as in `as_rgb`. device: where the reward is given them.
    on_progress: called with the number of pictures of each part that is done; what it raises ends the work.
    Raises ValueError for no pictures, and for a reward that gives another shape.
    """
    if not images.numel():
        raise ValueError(f"There are no pictures to score: images has the shape {tuple(images.shape)}.")
    texts = [column.text for column in columns]
    if isinstance(reward, PreparedReward):
        reward.prepare(texts)
    at_once = max(1, min(PICTURES_AT_ONCE, PIXELS_AT_ONCE // images[0, ..., 0].numel()))
    parts = []
    for part in images.split(at_once):
        rows = [[text] * len(part) for text in texts]
        parts.append(score_all(reward, _for_reward(part, device), *rows).float().cpu())
        on_progress(len(part))
    return Table(columns, torch.cat(parts, 1).T)


def _for_reward(images: Tensor, device: torch.device | str) -> Tensor:
    """(B, 3, H, W) float32 from (B, H, W, C); a copy, for the host's own is no tensor that autograd takes."""
    return as_rgb(images.movedim(-1, 1)).to(device, torch.float32, copy=True).contiguous()


@torch.inference_mode(False)
def find_saliency(
    reward: Reward,
    images: Tensor,
    table: Table,
    size: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] = lambda maps: None,
) -> dict[int, Tensor]:
    """Where each column looks in the MAPPED best pictures: by picture, (columns, *size) as `heat` gives them.

    With negative words one more map, of the words-gap, comes last. Nothing where the reward has no gradient.
    on_progress: called with 1 after each column.
    """
    saliency = {}
    for i in table.ranking[:MAPPED]:
        image = _for_reward(images[i : i + 1], device)
        maps = []
        gap = torch.zeros_like(image[0])
        for column, share in zip(table.columns, table.shares.tolist()):
            gradient = pixel_gradient(reward, image, column.text)
            if gradient is None:
                return {}
            maps.append(heat(gradient, size))
            gap = gap + share * gradient
            on_progress(1)
        saliency[i] = torch.stack([*maps, heat(gap, size)] if table.has_gap else maps)
    return saliency


@torch.enable_grad()
def pixel_gradient(reward: Reward, image: Tensor, text: str) -> Tensor | None:
    """d score / d pixels, (3, H, W), of one picture (1, 3, H, W); None where the score does not hang on them."""
    image = image.detach().requires_grad_()
    score = reward.score(image, [text])
    if not score.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(score.sum(), image, allow_unused=True)
    return None if gradient is None else gradient[0]


def heat(gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """`size` in [0, 1], on the CPU: |gradient| (3, H, W) summed over channels, averaged to this size, smoothed.

    Its largest is 1, or 0 where there is no gradient anywhere.
    """
    strength = gradient.float().abs().sum(0).nan_to_num(posinf=0.0).cpu()
    strength = F.interpolate(strength[None, None], size, mode="area")
    strength = strength / strength.max().clamp(min=torch.finfo().tiny)
    smooth = _blur(strength, BLUR * max(size))[0, 0]
    return smooth / smooth.max().clamp(min=torch.finfo().tiny)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """(1, 1, H, W), Gaussian, `sigma` in pixels; at the borders of what lies inside alone."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))

    def along_both(x: Tensor) -> Tensor:
        x = F.conv2d(x, kernel.view(1, 1, -1, 1), padding=(reach, 0))
        return F.conv2d(x, kernel.view(1, 1, 1, -1), padding=(0, reach))

    return along_both(image) / along_both(torch.ones_like(image))
