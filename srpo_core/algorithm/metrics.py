"""The numbers of an update: what is kept of each score, and their means."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures import pixel_saturation
from .step import Score
from .terms import Answer


def saturation(images: Tensor) -> Tensor:
    """(), mean HSV saturation of images (B, 3, H, W) in [0, 1]; over-optimised rewards drive it up."""
    return pixel_saturation(images).mean()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an update keeps of a score whose gradient is pulled: no picture, so that many take no memory.

    samples: B; numbers: means over them, each (); answers, trains, velocity_ratio, guard_loss: the score's.
    pulls: (), whether there was a gradient to pull: a hinge that is met has none, and neither has a clipped picture.
    """

    samples: int
    trains: bool
    pulls: Tensor
    numbers: dict[str, Tensor]
    answers: tuple[Answer, ...]
    velocity_ratio: Tensor | None
    guard_loss: Tensor | None


def summarise(score: Score) -> Summary:
    branch = score.branch
    recovered = score.recovered
    numbers = {
        "loss": score.loss.mean(),
        "saturation": saturation(score.image),
        "clipped": score.clipped,
        "sigma": branch.sigma_out.mean(),
        "error_gain": branch.error_gain.mean(),
    }
    pulls = (score.gradient != 0).any()
    if recovered.guard_loss is not None:
        pulls = pulls | (recovered.guard_loss > 0).any().to(pulls.device)
    return Summary(
        samples=len(score.loss),
        trains=score.trains,
        pulls=pulls,
        numbers=numbers,
        answers=score.answers,
        velocity_ratio=recovered.velocity_ratio,
        guard_loss=recovered.guard_loss,
    )


def describe(summaries: list[Summary]) -> dict[str, float]:
    """The numbers of one update, averaged over its samples and branches; those of named rewards end in "/name"."""
    samples = [each.samples for each in summaries]
    numbers = {name: mean((each.numbers[name].item() for each in summaries), samples) for name in summaries[0].numbers}
    compared = {
        "velocity_ratio": [each.velocity_ratio for each in summaries if each.velocity_ratio is not None],
        "guard": [each.guard_loss for each in summaries if each.guard_loss is not None],
    }
    numbers |= {name: torch.cat(values).mean().item() for name, values in compared.items() if values}
    answers = [answer for each in summaries for answer in each.answers]
    for name in dict.fromkeys(answer.name for answer in answers):
        numbers |= describe_answers([answer for answer in answers if answer.name == name], f"/{name}" if name else "")
    return numbers


def describe_answers(answers: list[Answer], suffix: str) -> dict[str, float]:
    samples = [len(answer.loss) for answer in answers]
    positive = mean((answer.positive.mean().item() for answer in answers), samples)
    negative = mean((answer.negative.mean().item() for answer in answers), samples)
    numbers = {"reward_positive": positive, "reward_negative": negative, "words_gap": positive - negative}
    return {f"{key}{suffix}": value for key, value in numbers.items()}


def mean(values: Iterable[float], counts: list[int]) -> float:
    """The mean over all samples, of means over parts of them that have these counts."""
    return sum(value * count for value, count in zip(values, counts)) / sum(counts)
