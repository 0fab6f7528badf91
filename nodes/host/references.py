"""Whether a model takes the references of photos."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...srpo_core.data.photo_latents import REFERENCES, Photos
from ...srpo_core.run.draws import draw_noise

if TYPE_CHECKING:
    from .flow_model import HostFlow

ASKED_AT = 0.9  # the share of noise
WAY_OUT = 'Set references on SRPO Photos to "none", or load a model that edits pictures.'


def check_takes_references(flow: HostFlow, photos: Photos, checked: set[Hashable]):
    """Raises ValueError for photos with references and a model that fails with them, or says the same without.

    The first photo is asked without and with. checked: signatures of what came out well already; one more is added.
    """
    if not photos.has_references:
        return
    photos.prepare([0])
    cond = photos.cond([0])
    signature = REFERENCES, flow.signature(cond)
    if signature in checked:
        return
    noise = draw_noise([0], photos.shape(0))
    sigma = torch.tensor([ASKED_AT])
    without = flow.sampled_velocity(noise, sigma, photos.captions([0]))
    if torch.equal(_with_references(flow, noise, sigma, cond), without):
        raise ValueError(
            f"The photos have references, and {type(flow.patcher.model).__name__} takes none: what it makes of a photo "
            f"is the same with and without. {WAY_OUT}"
        )
    checked.add(signature)


def _with_references(flow: HostFlow, noise: Tensor, sigma: Tensor, cond: list) -> Tensor:
    """What the model says then; without them it said something."""
    try:
        return flow.sampled_velocity(noise, sigma, cond)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The photos have references, with which {type(flow.patcher.model).__name__} fails: it makes no edits, or "
            f"takes references of another kind ({str(error).splitlines()[0]}). {WAY_OUT}"
        ) from error
