"""What a model can be trained with, and what to say where something doesn't fit."""

import contextlib
import re
from collections.abc import Iterator

import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, IMG_TO_IMG_FLOW
from comfy.sampler_helpers import cond_has_hooks
from torch import Tensor

FLOWS = (ModelType.FLOW, ModelType.FLUX, ModelType.FLOW_AV)
FITTING = "one that predicts a velocity on latents of pictures (FLUX.1, FLUX.2, SD3.5, Z-Image, ...)"
READS_POOLED = ("vector_in", "y_embedder")  # layers of FLUX and SD3
WIDTHS = re.compile(
    r"shapes cannot be multiplied \(\d+x(?P<given>\d+) and (?P<taken>\d+)x"
    r"|normalized_shape=\[(?P<expected>\d+)\].* size\s*\[(?:\d+, )*(?P<got>\d+)\]"
)


def check_model(patcher: ModelPatcher):
    """Raises ValueError for a model that predicts no flow's velocity, and for one whose latents are no pictures."""
    name = type(patcher.model).__name__
    sampling = patcher.get_model_object("model_sampling")
    if not isinstance(sampling, CONST) or isinstance(sampling, IMG_TO_IMG_FLOW):
        if patcher.model.model_type in FLOWS:
            kind = next(k.__name__ for k in type(sampling).__mro__ if "calculate_denoised" in vars(k))
            raise ValueError(
                f"Another node set the sampling of this {name} to {kind}, with which it is not a flow-matching model "
                "any more, as Direct-Align needs: take that node (ModelSampling...) off the MODEL."
            )
        raise ValueError(f"{name} is not a flow-matching model, which Direct-Align needs: load {FITTING}.")
    dimensions = patcher.get_model_object("latent_format").latent_dimensions
    if dimensions != 2:
        raise ValueError(
            f"{name} has latents of {dimensions + 2} dimensions (videos have 5, sound has 3), and only those of "
            f"pictures, with 4, can be trained on: load {FITTING}."
        )


def check_latent(patcher: ModelPatcher, latent: Tensor):
    """Raises ValueError when the model can't take the latent."""
    check_model(patcher)
    latent_format = patcher.get_model_object("latent_format")
    channels = latent_format.latent_channels
    ratio = latent_format.spacial_downscale_ratio
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"The latent has the shape {tuple(latent.shape)}, but {type(patcher.model).__name__} takes (batch, "
            f"{channels}, height / {ratio}, width / {ratio}): use the empty latent and the VAE that belong to it."
        )


def check_conditioning(patcher: ModelPatcher, cond: list):
    """Raises ValueError when the model can't be trained with the conditioning."""
    name = type(patcher.model).__name__
    network = patcher.get_model_object("diffusion_model")
    pooled = all(c[1].get("pooled_output") is not None for c in cond)
    if not pooled and any(getattr(network, part, None) is not None for part in READS_POOLED):
        raise ValueError(
            f"The conditioning has no pooled output, which this {name} needs: encode the prompt with the text encoders "
            "that belong to it (for FLUX.1 Load CLIP (Dual), type flux)."
        )
    if patcher.is_dynamic() and cond_has_hooks(cond):
        raise ValueError(
            "The conditioning has a hook, for which ComfyUI makes a second copy of a model that it streams, without "
            "the adapter: take the hook (Create Hook ...) away, or start ComfyUI with --disable-dynamic-vram."
        )


@contextlib.contextmanager
def names_other_text_encoders(patcher: ModelPatcher, cond: list) -> Iterator[None]:
    """Where a layer gets an input of another width than it takes, and the prompt has that width."""
    try:
        yield
    except RuntimeError as error:
        refused = WIDTHS.search(str(error))
        found = [c[0] for c in cond] + [c[1].get("pooled_output") for c in cond]
        widths = {tensor.shape[-1] for tensor in found if torch.is_tensor(tensor)}
        if not refused or (width := int(refused["given"] or refused["got"])) not in widths:
            raise
        raise ValueError(
            f"The encoded prompt is {width} wide, and {type(patcher.model).__name__} takes "
            f"{refused['taken'] or refused['expected']} there: encode it with the text encoders that belong to this "
            f"model ({error})."
        ) from error
