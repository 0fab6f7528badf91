"""SRPO_Previews: the fixed-seed samples that a run shows of itself, or that Compare shows of two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_management
import torch
from comfy_api.latest import io

from ..srpo_core.algorithm.protocols import Dataset
from ..srpo_core.report.measures import measure_pictures
from ..srpo_core.rewards import Reward
from ..srpo_core.seeds import FIRST_RESERVED
from .checked import answer_of, checked
from .host.sampling import Sampling
from .inputs import check_own_side, own_size_inputs, sampler_inputs, settings_of
from .sockets import CATEGORY, DatasetType, PreviewsType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from .host.samples import FixedSamples
    from .open_run import OpenRun

LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Which samples are shown, and when.

    dataset: whose prompts they are, from the first; None: the one that is trained on, or compared with. every: updates
    between two pictures. count: of samples. seeds: theirs, taken around again where there are fewer; none: some that
    training never draws. width, height: in pixels; 0 is that of the node that shows them. sampling: but for the
    guidance and cfg, which are that node's too.
    """

    dataset: Dataset | None = None
    every: int = 5
    count: int = 4
    seeds: Sequence[int] = ()
    width: int = 0
    height: int = 0
    sampling: Sampling = Sampling()

    def __post_init__(self):
        check_own_side("width", self.width)
        check_own_side("height", self.height)


class PreviewsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Previews",
            display_name="SRPO Previews",
            category=CATEGORY,
            description="Which samples SRPO Train shows while it trains, of a size and with steps of their own. SRPO "
            "Compare makes its pictures in the same way.",
            search_aliases=["validation prompts", "fixed seeds", "sample images", "progress pictures", "srpo"],
            inputs=[
                io.Int.Input(
                    "every",
                    default=PreviewSettings.every,
                    min=1,
                    max=1000,
                    tooltip="How many updates lie between two pictures on SRPO Train.",
                ),
                io.Int.Input(
                    "count",
                    default=PreviewSettings.count,
                    min=1,
                    max=64,
                    tooltip="How many samples SRPO Train shows, of the dataset's first prompts.",
                ),
                io.String.Input(
                    "seeds",
                    default="",
                    tooltip="The seeds of the samples, one after the other. Where it is empty, training never draws "
                    "theirs.",
                ),
                *own_size_inputs("the node that shows them"),
                *sampler_inputs(),
                DatasetType.Input(
                    "dataset",
                    optional=True,
                    tooltip="The prompts to show instead of the first ones that are trained on: for validation.",
                ),
            ],
            outputs=[
                PreviewsType.Output(display_name="previews", tooltip="These settings, for SRPO Train or SRPO Compare.")
            ],
        )

    @classmethod
    def validate_inputs(cls, seeds: str | None = None) -> bool | str:
        return answer_of(parse_seeds, seeds or "")

    @classmethod
    @checked
    def execute(cls, seeds: str, **inputs: Any) -> io.NodeOutput:
        sampling = settings_of(Sampling, inputs, guidance=Sampling.guidance, cfg=Sampling.cfg)
        return io.NodeOutput(settings_of(PreviewSettings, inputs, seeds=parse_seeds(seeds), sampling=sampling))


def parse_seeds(text: str) -> list[int]:
    """Seeds as people type them, separated by commas, spaces or lines. Raises ValueError for anything else."""
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) <= LARGEST_SEED)]
    if wrong:
        raise ValueError(
            f'seeds holds "{wrong[0]}": write whole numbers from 0 to {LARGEST_SEED}, for example 1, 2, 3.'
        )
    return [int(word) for word in words]


def previewed(dataset: Dataset, count: int) -> list[int]:
    """Which prompts of the dataset `count` previews show: the first, taken around again where there are fewer."""
    return [i % len(dataset.prompts) for i in range(count)]


def seeds_of(typed: Sequence[int], count: int) -> list[int]:
    """The seeds of `count` previews: the typed ones, taken around again where there are fewer.

    Where there are none, previews begin from noise that training never draws; one that is typed may be among
    training's, and repeats another from 2**32 on (see seeds.py).
    """
    seeds = typed or range(FIRST_RESERVED, FIRST_RESERVED + count)
    return [seeds[i % len(seeds)] for i in range(count)]


class Shown(NamedTuple):
    """Samples (count, H, W, 3) in [0, 1], on the CPU, and their numbers by name."""

    images: torch.Tensor
    numbers: dict[str, float]


class Previews:
    """Samples before training, and as the run is now.

    Those of now are of the run's moving average, if it has one. vae: decodes them. reward: see `features_of`.
    on_step: told the pictures of each step of the sampler. alone: why they are made one at a time, if they are.
    """

    def __init__(self, opened: OpenRun, samples: FixedSamples, vae: VAE, reward: Reward):
        samples.dataset.prepare(samples.indices)
        self.opened = opened
        self.samples = samples
        self.vae = vae
        self.reward = reward
        self.on_step: Callable[[int], None] = lambda pictures: None
        self.alone = ""

    @cached_property
    def before(self) -> Shown:
        return self._sample(self.opened.base)

    def about(self) -> list[dict[str, Any]]:
        """Of which prompt and noise each of the samples is."""
        prompts = self.samples.dataset.prompts
        return [{"prompt": prompts[i], "seed": seed} for i, seed in zip(self.samples.indices, self.samples.seeds)]

    def now(self) -> Shown:
        with self.opened.run.averaged():
            return self._sample(self.opened.model)

    def _sample(self, model: ModelPatcher) -> Shown:
        from .host.samples import decode

        sampled = self.samples.sample(model, self.on_step)
        self.alone = self.alone or sampled.alone
        images = decode(self.vae, sampled.latents)
        device = comfy.model_management.get_torch_device()
        numbers = measure_pictures(
            images, self.samples.indices, self.reward, device=device, curvature=sampled.curvature
        )
        return Shown(images, numbers)
