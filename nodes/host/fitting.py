"""What a model can be trained with, and what to say where something doesn't fit."""

import contextlib
import re
import weakref
from collections.abc import Iterator

import torch
from comfy.model_base import BaseModel, model_sampling
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import cond_has_hooks
from torch import Tensor, nn

from ...srpo_core.algorithm.process import Process, process_of

FITTING = "one that makes pictures out of noise (FLUX.1, FLUX.2, Z-Image, Qwen-Image, SD3.5, SDXL, ...)"
DIMENSIONS = (2, 3)  # of latents, beside batch and channels: pictures, and videos, of which one frame is a picture
READS_POOLED = ("vector_in", "y_embedder")  # layers of FLUX and SD3; others call those of their captions so
NO_POOLED = (
    "The conditioning has no pooled output, which this {name} needs: encode the prompt with the text encoders that "
    "belong to it (for FLUX.1 Load CLIP (Dual), type flux)."
)
WIDTHS = re.compile(
    r"shapes cannot be multiplied \(\d+x(?P<given>\d+) and (?P<taken>\d+)x"
    r"|normalized_shape=\[(?P<expected>\d+)\].* size\s*\[(?:\d+, )*(?P<got>\d+)\]"
)


def check_model(patcher: ModelPatcher) -> Process:
    """The model's noising process. Raises ValueError for a model that has none, and for latents that are no pictures.

    It is what the host's sampling of the model mixes, so that nodes which set another shift or range are heard.
    """
    name = type(patcher.model).__name__
    sampling = patcher.get_model_object("model_sampling")
    own = _own_process(patcher.model)
    try:
        process = _process(name, sampling)
    except ValueError:
        process = None
    if process is None or (process.decay, process.gain) != (own.decay, own.gain):
        kind = next(k.__name__ for k in type(sampling).__mro__ if "calculate_denoised" in vars(k))
        raise ValueError(
            f"Another node set the sampling of this {name} to {kind}, which mixes pictures and noise in another way "
            "than the model has learned, as Direct-Align needs it: take that node (ModelSampling...) off the MODEL."
        )
    dimensions = patcher.get_model_object("latent_format").latent_dimensions
    if dimensions not in DIMENSIONS:
        raise ValueError(
            f"{name} has latents of {dimensions + 2} dimensions, as sound and shapes have, and only those of pictures "
            f"(4) and videos (5) can be trained on: load {FITTING}."
        )
    return process


_own: weakref.WeakKeyDictionary[BaseModel, Process] = weakref.WeakKeyDictionary()


def _own_process(model: BaseModel) -> Process:
    """That of the model as its file was detected, whatever nodes have set since; making it can take a second."""
    if model not in _own:
        _own[model] = _process(type(model).__name__, model_sampling(model.model_config, model.model_type))
    return _own[model]


def _process(name: str, sampling: nn.Module) -> Process:
    try:
        return process_of(sampling.noise_scaling, float(getattr(sampling, "sigma_max", 1.0)))
    except ValueError as error:
        raise ValueError(f"Direct-Align can't train {name}: load {FITTING}. {error}") from error


def token_side(patcher: ModelPatcher) -> int:
    """How many places of a latent, in each direction, are one token; 2, the most usual, where it is not said."""
    sizes = getattr(patcher.get_model_object("diffusion_model"), "patch_size", 2)
    sizes = tuple(sizes)[-2:] if isinstance(sizes, (tuple, list)) else (sizes,)
    return max(sizes) if all(isinstance(size, int) for size in sizes) else 2


def latent_shape(patcher: ModelPatcher, width: int, height: int) -> tuple[int, ...]:
    """(C, H, W) of the model's latents of a picture of this size, (C, 1, H, W) of those of one frame of a video.

    Raises ValueError for a size that doesn't fit.
    """
    check_model(patcher)
    latent_format = patcher.get_model_object("latent_format")
    ratio = latent_format.spacial_downscale_ratio
    multiple = ratio * token_side(patcher)
    if width % multiple or height % multiple:
        fitting = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
        raise ValueError(
            f"The size is {width}x{height}, and {type(patcher.model).__name__} takes multiples of {multiple}: choose "
            f"{fitting[0]}x{fitting[1]}."
        )
    frames = (1,) * (latent_format.latent_dimensions - 2)
    return latent_format.latent_channels, *frames, height // ratio, width // ratio


def check_latent(patcher: ModelPatcher, latent: Tensor):
    """Raises ValueError when the model can't take the latent."""
    check_model(patcher)
    latent_format = patcher.get_model_object("latent_format")
    channels = latent_format.latent_channels
    ratio = latent_format.spacial_downscale_ratio
    frames = [1] * (latent_format.latent_dimensions - 2)
    if latent.ndim != 4 + len(frames) or latent.shape[1] != channels or list(latent.shape[2:-2]) != frames:
        expected = ", ".join(map(str, ["batch", channels, *frames, f"height / {ratio}", f"width / {ratio}"]))
        raise ValueError(
            f"The latent has the shape {tuple(latent.shape)}, but {type(patcher.model).__name__} takes ({expected}): "
            f"use the empty latent{', of one frame,' if frames else ''} and the VAE that belong to it."
        )


def check_conditioning(patcher: ModelPatcher, cond: list):
    """Raises ValueError when the model can't be trained with the conditioning."""
    name = type(patcher.model).__name__
    network = patcher.get_model_object("diffusion_model")
    pooled = all(c[1].get("pooled_output") is not None for c in cond)
    reads = type(patcher.model).encode_adm is not BaseModel.encode_adm
    if reads and not pooled and any(getattr(network, part, None) is not None for part in READS_POOLED):
        raise ValueError(NO_POOLED.format(name=name))
    if patcher.is_dynamic() and cond_has_hooks(cond):
        raise ValueError(
            "The conditioning has a hook, for which ComfyUI makes a second copy of a model that it streams, without "
            "the adapter: take the hook (Create Hook ...) away, or start ComfyUI with --disable-dynamic-vram."
        )


def check_level(patcher: ModelPatcher, process: Process, share: Tensor):
    """Raises ValueError for shares of noise (B,) that the model has never seen; what is rounding is none."""
    noisiest = share.max().item()
    if noisiest > process.largest_share + 1e-5:
        raise ValueError(
            f"{type(patcher.model).__name__} was asked at {noisiest:.4f} of noise, and knows no state with more than "
            f"{process.largest_share:.4f}: set the window below that on SRPO Noise Levels."
        )


def check_negative(cfg: float, negative: list | None):
    """Raises ValueError for classifier-free guidance with nothing to guide away from."""
    if cfg != 1 and negative is None:
        raise ValueError(
            f"cfg is {cfg:g}, and there is no conditioning to guide away from: connect negative (CLIP Text Encode, of "
            "an empty prompt or of what you don't want), or set cfg to 1."
        )


@contextlib.contextmanager
def names_other_text_encoders(patcher: ModelPatcher, cond: list) -> Iterator[None]:
    """Where a layer gets an input of another width than it takes, and the prompt has that width; or lacks a part."""
    try:
        yield
    except KeyError as error:
        if error.args != ("pooled_output",):
            raise
        raise ValueError(NO_POOLED.format(name=type(patcher.model).__name__)) from error
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


def forget_prompts(patcher: ModelPatcher):
    """What the network keeps of prompts by their tokens alone: its layers have learned since, or are others."""
    network = patcher.get_model_object("diffusion_model")
    if hasattr(network, "clear_kv_cache"):
        network.clear_kv_cache()
