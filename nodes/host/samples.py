"""Pictures of prompts from fixed seeds, by any MODEL: what previews and comparisons are made of."""

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...srpo_core.algorithm.protocols import Dataset, Shape
from ...srpo_core.run.batch_check import difference, one_at_a_time
from ...srpo_core.run.draws import draw_noise
from .flow_model import HostFlow
from .patcher.carried import latent_out
from .sampling import Sampling
from .windows import visited


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Pictures that a MODEL made.

    latents: (B, C, H, W) of each part, as the VAE takes them. curvature: how far their paths bend, the mean; see
    `Path`; None with a sampler that leaves the model's path, by noise of its own. alone: why they were made one at a
    time, a sentence, where a batch was asked for.
    """

    latents: list[Tensor]
    curvature: float | None
    alone: str = ""


@dataclass(frozen=True, kw_only=True)
class FixedSamples:
    """N pictures: of which prompt each is, and from which seed.

    indices, seeds: of the prompt and the noise of each picture. shape: of latents. at_once: pictures that are sampled
    together, where they then come out as they do alone.
    """

    dataset: Dataset
    sampling: Sampling
    negative: list | None = None
    shape: Shape
    indices: list[int]
    seeds: list[int]
    at_once: int
    _checked: dict[Hashable, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def work(self) -> int:
        """How many pictures times steps that is."""
        return len(self.indices) * self.sampling.steps

    def with_steps(self, steps: int) -> "FixedSamples":
        """The same pictures by so many steps."""
        return replace(self, sampling=replace(self.sampling, steps=steps))

    def sample(self, patcher: ModelPatcher, on_step: Callable[[int], None] = lambda pictures: None) -> Sampled:
        """on_step: told the pictures of every step."""
        sampling = self.sampling
        flow = HostFlow(patcher, sampling, sampling.guidance, cfg=sampling.cfg, negative=self.negative, edits=True)
        flow.on_step = on_step
        draws_noise = flow.samples_depend_on_batch
        reason = None if draws_noise else self._differs(flow)
        latents = []
        bends = []
        for part in self._parts(1 if draws_noise or reason else self.at_once):
            latent = flow.rollout(self._noise(part), self.dataset.cond(self.indices[part]), self.seeds[part.start])
            latents.append(latent_out(patcher, latent))
            bends.append(flow.path.curvature())
        curvature = torch.cat(bends).mean().item()
        known = curvature if math.isfinite(curvature) and not draws_noise else None
        return Sampled(latents=latents, curvature=known, alone=one_at_a_time(reason) if reason else "")

    def _noise(self, part: slice) -> Tensor:
        return draw_noise(self.seeds[part], self.shape)

    def _differs(self, flow: HostFlow) -> str | None:
        """How two pictures of a batch come out of the model otherwise than each alone; they begin as all do."""
        shared = [part for part in self._parts(self.at_once) if part.stop - part.start > 1]
        if not shared:
            return None
        places = max(([part.start, part.stop - 1] for part in shared), key=lambda p: len({self.indices[i] for i in p}))
        indices = [self.indices[place] for place in places]
        signature = flow.signature(self.dataset.cond(indices[:1]))
        if signature not in self._checked:
            x = draw_noise([self.seeds[place] for place in places], self.shape)
            sigma = x.new_full((2,), visited(flow.patcher, self.sampling)[0])
            cond = lambda which: self.dataset.cond([indices[i] for i in which])  # noqa: E731
            self._checked[signature] = difference(flow, x, sigma, cond)
        return self._checked[signature]

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
