"""What a reward must have, and how SRPO asks it with both words."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..seeds import derived_seed
from .placement import Placement

NOISE = 0.1  # standard deviation of the noise in the negative of a reward without text; images are in [0, 1]


class Reward(Protocol):
    """Anything with this one method is a reward.

    It may have more: `reads_text = False` says that it looks at the image alone; `name` is what people call it. One
    that can ask several texts in one pass is an OnePassReward, one that can encode texts beforehand a PreparedReward.
    """

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """(B,): each image (B, 3, H, W in [0, 1], any size) against its text. Differentiable in the images."""


@runtime_checkable
class PreparedReward(Reward, Protocol):
    """A reward that encodes its texts beforehand, many at once."""

    def prepare(self, texts: list[str]) -> Any:
        """Hears which texts will be asked, before they are needed."""


@runtime_checkable
class OnePassReward(Reward, Protocol):
    """A reward that asks several texts in one pass over the images."""

    def score_many(self, images: Tensor, *texts: list[str]) -> Tensor:
        """(len(texts), B): each image (B, 3, H, W in [0, 1], any size) against its text of each list."""


@runtime_checkable
class EmbeddingReward(Reward, Protocol):
    """A reward whose features tell how far pictures are from each other."""

    def embed(self, images: Tensor) -> Tensor:
        """(B, D): the feature of each image (B, 3, H, W in [0, 1], any size)."""


@runtime_checkable
class TowerReward(Reward, Protocol):
    """A reward of this pack: a model that a host can move between devices.

    image_tower: from what `pixels` gives of images, (B, 3, H, W) in [0, 1]. place: see Placement; a host sets its own.
    """

    image_tower: nn.Module
    pixels: Callable[[Tensor], Tensor]
    place: Placement


def reads_text(reward: Reward) -> bool:
    """Whether it looks at the text; one that does not say does."""
    return getattr(reward, "reads_text", True)


def score_words(
    reward: Reward,
    images: Tensor,
    positive: list[str],
    negative: list[str],
    *,
    update: int,
    seeds: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Both (B,): the reward with the positive and with the negative texts.

    A reward without text sees the image as the positive and the same with a little noise as the negative (arXiv
    2509.06942, section 3.2). Each image's noise follows from the update and its own seed, so whatever shares a batch
    with it changes nothing; without seeds all images have the same noise.
    """
    if not reads_text(reward):
        pair = torch.cat([images, noised(images, update, seeds or [0] * len(images))])
        with_positive, with_negative = score_all(reward, pair, positive + negative)[0].chunk(2)
    else:
        with_positive, with_negative = score_all(reward, images, positive, negative)
    return with_positive, with_negative


def score_all(reward: Reward, images: Tensor, *texts: list[str]) -> Tensor:
    """(len(texts), B), in one pass over the images where the reward can.

    Raises ValueError when it gives another shape.
    """
    if isinstance(reward, OnePassReward):
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


def noised(images: Tensor, update: int, seeds: Sequence[int]) -> Tensor:
    generators = [torch.Generator().manual_seed(derived_seed("picture", seed, update)) for seed in seeds]
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
    return (images + NOISE * noise.to(images)).clamp(0, 1)
