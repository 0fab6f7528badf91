"""Whether pictures come out of a model in a batch as they do alone: with some, silently or not, they don't."""

from collections.abc import Hashable
from dataclasses import replace

import torch

from ..language import say
from .draws import Draw, cond_of, draw_noise, draws_of, noise_seed, of_one_shape, shape_of
from .training import Training

DIFFERS = 0.05  # of the norm: the rounding of bf16 and of quantised layers gives a hundredth, another picture tenths


def held_against_singles(training: Training, made: int, checked: set[Hashable]) -> tuple[Training, str | None]:
    """The training as it is, or with one picture at a time and the reason for that.

    made: updates so far; the next one's first two alike are asked together and alone, at both ends of the window.
    checked: signatures of flow models with which that came out alike already; one more is added.
    """
    batching = training.batching
    if max(batching.at_once, batching.sampled_at_once) < 2:
        return training, None
    draws = draws_of(made, batching, training.dataset, training.photos)
    pair = next((group[:2] for group in of_one_shape(draws, batching) if len(group) > 1), None)
    if pair is None:
        return training, None
    signature = "a batch", training.flow.signature(training.example_of(pair[0]))
    if signature in checked:
        return training, None
    reason = _difference(training, pair)
    if reason is None:
        checked.add(signature)
        return training, None
    return replace(training, batching=replace(batching, at_once=1, sampled_at_once=1)), reason


def _difference(training: Training, pair: list[Draw]) -> str | None:
    """How the two differ; None where they don't, or can't be told since they are not finite."""
    flow = training.flow
    x = draw_noise([noise_seed(training.batching, draw) for draw in pair], shape_of(pair[0], training.batching))
    sigma = torch.tensor([training.window.sigma_max, max(training.window.sigma_min, 0.1)])
    alone = torch.cat(
        [flow.sampled_velocity(x[i : i + 1], sigma[i : i + 1], cond_of([draw])) for i, draw in enumerate(pair)]
    )
    try:
        together = flow.sampled_velocity(x, sigma, cond_of(pair))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        return say("it fails ({error})", error=str(error).splitlines()[0])
    difference = ((together - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)).max().item()
    return say("they differ by {difference:.0%}", difference=difference) if difference > DIFFERS else None
