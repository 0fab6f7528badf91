"""The clean latents of an update: rollouts of prompts, or photos."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithm.protocols import FlowModel, PhotoDataset
from ..algorithm.ways import Sampled, Traced
from ..digest import digest
from .draws import Batching, Draw, cond_of, draw_noise, draw_seed, noise_seed, of_one_shape, shape_of
from .state import TrainState


@dataclass(frozen=True)
class Group:
    """Draws that share a trained forward, with their clean latents and noise."""

    draws: list[Draw]
    sampled: Sampled


def groups_of(
    state: TrainState, flow: FlowModel, batching: Batching, draws: list[Draw], *, traced: bool = False
) -> Iterator[Group]:
    """The draws of an update in groups; each is rolled out when it is asked for.

    traced: rollouts come with their trajectory.
    """
    for together in of_one_shape(draws, batching):
        noise = draw_noise([noise_seed(batching, draw) for draw in together], shape_of(together[0], batching))
        seeds = tuple(draw_seed(batching, draw.number) for draw in together)
        if traced:
            trajectory = flow.trajectory(noise, cond_of(together))
            sampled: Sampled = Traced(trajectory.x0, noise, seeds, trajectory)
        else:
            sampled = Sampled(clean_latents(state, flow, batching, together, noise=noise), noise, seeds)
        for start in range(0, len(together), batching.at_once):
            part = slice(start, start + batching.at_once)
            yield Group(together[part], sampled.part(part))


def clean_latents(
    state: TrainState, flow: FlowModel, batching: Batching, draws: list[Draw], *, noise: Tensor
) -> Tensor:
    """x0 (B, C, H, W): photos, or what the model makes of the noise.

    Rollouts that serve several updates are kept by the run, also on disk, so that it resumes with the same.
    """
    data = draws[0].data
    if isinstance(data, PhotoDataset):
        return data.latents([draw.index for draw in draws])
    seeds = [noise_seed(batching, draw) for draw in draws]
    if batching.reuse == 1:
        return rolled_out(flow, noise, draws, seeds)
    names = [digest([seed, batching.shape, draw.prompt]) for seed, draw in zip(seeds, draws)]
    if not state.rollouts.keys() >= set(names):
        state.rollouts |= zip(names, rolled_out(flow, noise, draws, seeds).detach().cpu())
    return torch.stack([state.rollouts[name] for name in names])


def rolled_out(flow: FlowModel, noise: Tensor, draws: list[Draw], seeds: list[int]) -> Tensor:
    """x0 (B, C, H, W): together, but one by one where a picture would depend on those it is sampled with."""
    if not flow.samples_depend_on_batch:
        return flow.rollout(noise, cond_of(draws), seeds[0])
    alone = zip(noise.split(1), draws, seeds)
    return torch.cat([flow.rollout(one, cond_of([draw]), seed) for one, draw, seed in alone])
