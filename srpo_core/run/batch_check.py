"""Whether pictures come out of a model in a batch as they do alone: with some, silently or not, they don't."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..algorithm.protocols import FlowModel
from ..language import say
from .draws import Draw, cond_of, draw_noise, draws_of, noise_seed, of_one_shape, shape_of
from .training import Training

DIFFERS = 0.05  # of the norm: the rounding of bf16 and of quantised layers gives a hundredth, another picture tenths


def held_against_singles(training: Training, coming: range, checked: set[Hashable]) -> tuple[Training, str | None]:
    """The training as it is, or with one picture at a time and the reason for that.

    coming: how many updates the run has made before each of those that it makes now. The first two pictures of each
    kind that would share a batch are asked together and alone, at both ends of the window.
    checked: signatures of flow models with which that came out alike already; more are added.
    """
    flow = training.flow
    for pair in _pairs(training, coming):
        signature = "a batch", flow.signature(training.example_of(pair[0]))
        if signature in checked:
            continue
        x = draw_noise([noise_seed(training.batching, draw) for draw in pair], shape_of(pair[0], training.batching))
        sigma = torch.tensor([training.window.sigma_max, max(training.window.sigma_min, 0.1)])
        reason = difference(flow, x, sigma, partial(_cond_of, pair))
        if reason:
            return replace(training, batching=replace(training.batching, at_once=1, sampled_at_once=1)), reason
        checked.add(signature)
    return training, None


def _cond_of(pair: list[Draw], which: list[int]) -> Any:
    return cond_of([pair[i] for i in which])


def _pairs(training: Training, coming: range) -> Iterator[list[Draw]]:
    """Two that would share a forward, of each dataset."""
    batching = training.batching
    if max(batching.at_once, batching.sampled_at_once) < 2:
        return
    seen: set[int] = set()
    for made in coming[:: batching.reuse]:
        draws = draws_of(made, batching, training.dataset, training.photos)
        for group in of_one_shape(draws, batching):
            if len(group) > 1 and id(group[0].data) not in seen:
                seen.add(id(group[0].data))
                yield [group[0], group[-1]]
        if len(seen) == (2 if training.photos else 1):
            return


def difference(flow: FlowModel, x: Tensor, sigma: Tensor, cond: Callable[[list[int]], Any]) -> str | None:
    """How two pictures x (2, ...) at these sigmas (2,) come out of a model together otherwise than alone, in words.

    cond: gives the conditioning of these of both, as one batch. None where they come out alike, and where that can't be
    told: they are not finite, or one alone does not come out alike twice.
    """

    def singly() -> Tensor:
        return torch.cat([flow.sampled_velocity(x[i : i + 1], sigma[i : i + 1], cond([i])) for i in range(2)])

    alone = singly()
    try:
        together = flow.sampled_velocity(x, sigma, cond([0, 1]))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        return say("it fails ({error})", error=str(error).splitlines()[0])
    off = _off(together, alone)
    if not off > DIFFERS or _off(singly(), alone) > DIFFERS:  # a model that draws noise says another thing each time
        return None
    return say("they differ by {difference:.0%}", difference=off)


def _off(found: Tensor, alone: Tensor) -> float:
    return ((found - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)).max().item()


def one_at_a_time(reason: str) -> str:
    """What is said where pictures don't share a batch, for this reason."""
    return say(
        "Pictures go through this model one at a time: two together do not come out as each alone, {reason}.",
        reason=reason,
    )
