"""SRPO_Rollouts: how the pictures are made that a run trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..srpo_core.run.draws import Batching
from .checked import checked
from .host.sampling import Sampling
from .inputs import asked_guidance, check_own_side, guidance_inputs, own_size_inputs, sampler_inputs, settings_of
from .sockets import CATEGORY, RolloutsType


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """How the pictures of prompts are sampled, of what size, and how often each is used.

    pairs, reuse: see `Batching`. width, height: in pixels; 0 is that of SRPO Train.
    """

    sampling: Sampling = Sampling()
    pairs: int = Batching.pairs
    reuse: int = Batching.reuse
    width: int = 0
    height: int = 0

    def __post_init__(self):
        check_own_side("width", self.width)
        check_own_side("height", self.height)


class RolloutsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Rollouts",
            display_name="SRPO Rollouts",
            category=CATEGORY,
            description="How SRPO Train makes the pictures that it trains on. They are most of the time of an update: "
            "fewer steps, a smaller size, pairs and reuse save it.",
            search_aliases=["sampler", "rollout steps", "faster training", "srpo"],
            inputs=[
                *sampler_inputs(),
                *guidance_inputs(
                    "The distilled guidance of the rollouts, of FLUX.1-dev and models like it: 1 as published with "
                    "HPS, 2 with PickScore. -1 is what is published for the model, or its own.",
                    "The classifier-free guidance of the rollouts, for models that are sampled so, such as Qwen-Image "
                    "and SD3.5. It needs negative on SRPO Train, and asks the model twice. 1 is none.",
                ),
                *own_size_inputs("SRPO Train"),
                io.Int.Input(
                    "pairs",
                    default=Batching.pairs,
                    min=1,
                    max=64,
                    tooltip="How many pairs of branches one rollout serves, each at a noise level of its own. 1 as "
                    "published; more learn more from each rollout, which costs far more than a branch.",
                ),
                io.Int.Input(
                    "reuse",
                    default=Batching.reuse,
                    min=1,
                    max=64,
                    tooltip="How many updates the same prompts and their rollouts serve, at ever new noise levels. 1 "
                    "as published; more saves rollouts, which age meanwhile.",
                ),
            ],
            outputs=[RolloutsType.Output(display_name="rollouts", tooltip="These settings, for SRPO Train.")],
        )

    @classmethod
    @checked
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        guidance = asked_guidance(inputs["guidance"])
        sampling = settings_of(Sampling, inputs, guidance=guidance)
        return io.NodeOutput(settings_of(Rollouts, inputs, sampling=sampling))
