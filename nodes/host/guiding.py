"""The host's guider, as it leads a MODEL's samples: with guidance, and with an eye on their path."""

from typing import Any

import comfy.samplers
import node_helpers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...srpo_core.algorithm.direct_align import per_sample
from ...srpo_core.algorithm.path import Path
from ...srpo_core.algorithm.process import Process
from ...srpo_core.data.photo_latents import REFERENCES
from .sampling import Sampling

LEAST_SHARE = 1e-3  # of noise, at which a model is asked: at 0, where a window may end, a velocity would be 0 / 0


class Followed(comfy.samplers.CFGGuider):
    """Tells `path` what the model says on its way, in the coordinates of a flow; that takes no further forward."""

    def __init__(self, patcher: ModelPatcher, process: Process):
        super().__init__(patcher)
        self.process = process
        self.path = Path()

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **more: Any) -> Tensor:
        denoised = super().__call__(x, sigma, *args, **more)
        share = self.process.share(sigma.float()).clamp(min=LEAST_SHARE)
        state = x / per_sample(self.process.total(sigma.float()), x)
        self.path.visit(share.max().item(), (state - denoised) / per_sample(share, x))
        return denoised


def with_guidance(cond: list, guidance: float | None) -> list:
    return cond if guidance is None else node_helpers.conditioning_set_values(cond, {"guidance": guidance})


def with_references_of(positive: list, negative: list) -> list:
    """The negative conditioning with the positive one's references where it has none: edits are sampled so."""
    found = [extra[REFERENCES] for _, extra in positive if REFERENCES in extra]
    return [[context, {REFERENCES: found[0]} | extra] for context, extra in negative] if found else negative


def check_euler(sampling: Sampling, guidance: float | None, cfg: float):
    """Raises ValueError where rollouts are not the Euler steps of the model as it is trained, with this guidance."""
    needs = "This objective trains the very steps that make a rollout, which are Euler's: "
    if sampling.sampler_name != "euler":
        raise ValueError(f"{needs}the sampler is {sampling.sampler_name}, so choose euler on SRPO Rollouts.")
    if sampling.guidance not in (None, guidance) or sampling.cfg != cfg:
        raise ValueError(
            f"{needs}SRPO Rollouts has {shown_guidance(sampling.guidance, sampling.cfg)}, SRPO Train has "
            f"{shown_guidance(guidance, cfg)}. Set them alike."
        )


def shown_guidance(guidance: float | None, cfg: float) -> str:
    return f"guidance {-1 if guidance is None else guidance:g} and cfg {cfg:g}"
