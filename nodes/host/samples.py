"""Pictures of prompts from fixed seeds, by any MODEL: what previews and comparisons are made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...srpo_core.algorithm.protocols import Dataset, Shape
from ...srpo_core.run.draws import draw_noise
from .flow_model import HostFlow
from .patcher.carried import latent_out
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class FixedSamples:
    """N pictures: of which prompt each is, and from which seed.

    indices, seeds: of the prompt and the noise of each picture. shape: of latents. at_once: pictures that are sampled
    together.
    """

    dataset: Dataset
    sampling: Sampling
    negative: list | None = None
    shape: Shape
    indices: list[int]
    seeds: list[int]
    at_once: int

    @property
    def work(self) -> int:
        """How many pictures times steps that is."""
        return len(self.indices) * self.sampling.steps

    def sample(self, patcher: ModelPatcher, on_step: Callable[[int], None] = lambda pictures: None) -> list[Tensor]:
        """Latents (B, C, H, W) of each part, as the VAE takes them. on_step: told the pictures of every step."""
        flow = HostFlow(patcher, self.sampling, negative=self.negative, edits=True)
        flow.on_step = on_step
        latents = []
        for part in self._parts(1 if flow.samples_depend_on_batch else self.at_once):
            noise = draw_noise(self.seeds[part], self.shape)
            latent = flow.rollout(noise, self.dataset.cond(self.indices[part]), self.seeds[part.start])
            latents.append(latent_out(patcher, latent))
        return latents

    def _parts(self, at_once: int) -> Iterator[slice]:
        """Consecutive pictures whose conditionings can be one batch."""
        start = 0
        for _, alike in groupby(self.indices, self.dataset.cond_shape):
            end = start + len(list(alike))
            yield from (slice(first, min(first + at_once, end)) for first in range(start, end, at_once))
            start = end


def decode(vae: VAE, latents: list[Tensor], on_progress: Callable[[int], None] = lambda pictures: None) -> Tensor:
    """(N, H, W, 3) in [0, 1], on the CPU."""
    images = []
    for latent in latents:
        images.append(vae.decode(latent).cpu().flatten(0, -4))  # videos have frames between batch and height
        on_progress(len(latent))
    return torch.cat(images)
