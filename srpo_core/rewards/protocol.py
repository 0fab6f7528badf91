"""What a reward must have, and how SRPO asks it with both words."""

from typing import Protocol

import torch
from torch import Tensor

NOISE = 0.1  # standard deviation of the noise in the negative of a reward without text; images are in [0, 1]


class Reward(Protocol):
    """Anything with this one method is a reward.

    It may have more: `reads_text = False` says that it looks at the image alone; `score_many(images, *texts)`,
    (len(texts), B), asks with several lists of texts in one pass over the images; `prepare(texts)` hears before
    they are needed which texts will be asked, many at once, so that it can encode them together;
    `name` is what people call it.
    """

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """(B,): each image (B, 3, H, W in [0, 1], any size) against its text. Differentiable in the images."""


def score_words(
    reward: Reward, images: Tensor, positive: list[str], negative: list[str], update: int
) -> tuple[Tensor, Tensor]:
    """Both (B,): the reward with the positive and with the negative texts.

    A reward without text sees the image as the positive and the same with a little noise, which `update` seeds, as
    the negative (arXiv 2509.06942, section 3.2).
    """
    if not getattr(reward, "reads_text", True):
        pair = torch.cat([images, noised(images, update)])
        return score_all(reward, pair, positive + negative)[0].chunk(2)
    return score_all(reward, images, positive, negative).unbind()


def score_all(reward: Reward, images: Tensor, *texts: list[str]) -> Tensor:
    """(len(texts), B), in one pass over the images where the reward can.

    Raises ValueError when it gives another shape.
    """
    if hasattr(reward, "score_many"):
        scores = reward.score_many(images, *texts)
    else:
        scores = torch.stack([reward.score(images, row) for row in texts])
    if scores.shape != (len(texts), len(images)):
        raise ValueError(
            f"The score of {name_of(reward)} gave {tuple(scores.shape[1:])} for {len(images)} images: it must give "
            f"one number for each, ({len(images)},)."
        )
    return scores


def name_of(reward: Reward) -> str:
    return getattr(reward, "name", type(reward).__name__)


def noised(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (images + NOISE * noise).clamp(0, 1)
