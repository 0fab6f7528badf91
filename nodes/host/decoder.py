"""The VAE that ComfyUI loaded, as the core's Decoder."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...srpo_core.algorithm.decoder_check import check_decoder
from ...srpo_core.algorithm.protocols import Pullback, Shape
from ...srpo_core.algorithm.scaling import pulled
from ...srpo_core.run.memory import GB, LiveBytes
from .fitting import check_model, token_side
from .gradients.differentiable import BlockSettings, Differentiable
from .gradients.frozen import is_norm
from .gradients.strips import NormSiluConv
from .patcher.forwards import replaced_forwards
from .patcher.loading import load, own
from .vae_state import caches_put_back, whole
from .without_content import without_content

log = logging.getLogger(__name__)

SMALL = 64 * 64  # places of a latent batch, up to which the decoder's activations are kept: recomputing costs a third
SIDE = 8  # of the noise on which blocks are held against the host's, and the gradient against pictures
AGREES = 0.03  # of the norm: a block that is another one differs by tenths, the rounding of bf16 by a hundredth


class HostDecoder:
    """Decodes latents of the MODEL's space with the host's VAE, differentiably.

    Raises ValueError when the VAE does not belong to the MODEL.
    """

    def __init__(self, vae: VAE, patcher: ModelPatcher):
        self.vae = vae
        self._held = False  # against the host's own blocks
        self._checked = False  # whether its gradient is that of its pictures
        self._can_recompute: bool | None = None
        self._frugal = True
        self._made: dict[bool, tuple[dict[nn.Module, Callable], Differentiable]] = {}
        check_model(patcher)
        self._token_side = token_side(patcher)
        self.latent_format = _own_format(patcher.get_model_object("latent_format"))
        has = (vae.latent_channels, vae.latent_dim)
        takes = (self.latent_format.latent_channels, self.latent_format.latent_dimensions)
        if has != takes:
            raise ValueError(
                f"This VAE has {has[0]} latent channels in {has[1]} dimensions, and {type(patcher.model).__name__} has "
                f"{takes[0]} in {takes[1]}: load the VAE that belongs to this model."
            )
        self._contrast, self._brightness = _range_of(vae)

    def decode(self, latent: Tensor) -> Pullback:
        """See Decoder. Out of memory, it and the way back raise torch.OutOfMemoryError that says which size fits.

        Raises RuntimeError where the gradient of the VAE is wrong: see check_decoder.
        """
        vae = self.vae
        shape = latent.shape
        load(vae.patcher, vae.memory_used_decode(shape, vae.vae_dtype))
        free = comfy.model_management.get_free_memory(vae.device)
        with self._says_what_fits(shape, free):
            self._hold_against_the_host()
            self._check_gradient(shape)
        recompute = self._recomputes(shape)
        with self._says_what_fits(shape, free), self._differentiable(recompute):
            leaf = latent.clone().requires_grad_()
            image = self._image(leaf)

        def pull(gradient: Tensor) -> Tensor:
            load(vae.patcher)
            with self._says_what_fits(shape, free), self._differentiable(recompute):
                image.backward(gradient.to(image))
                return leaf.grad

        return Pullback(image.detach(), lambda gradient: pulled(pull, gradient))

    def memory(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes beside the VAE's weights for latents (B, C, H, W): at most, and between decode and the way back."""
        return self._counted(shape, self._recomputes(shape))

    def _counted(self, shape: tuple[int, ...], recompute: bool) -> tuple[int, int]:
        device = self.vae.device
        with without_content(device, self.vae.first_stage_model), LiveBytes(device.type) as count:
            with self._differentiable(recompute):
                leaf = torch.empty(shape, device=device, requires_grad=True)
                image = self._image(leaf)
                held = count.held
                image.backward(torch.ones_like(image))
        return count.peak, held

    def _image(self, latent: Tensor) -> Tensor:
        raw = self.latent_format.process_out(latent).to(self.vae.device, self.vae.vae_dtype)
        images = self.vae.first_stage_model.decode(raw).float()
        if images.ndim == 5:
            images = images[:, :, 0]  # the first of the frames that a latent's first one makes
        return images * self._contrast + self._brightness

    def _hold_against_the_host(self):
        """Once: a newer host's blocks may be others than those that the frugal forwards were written for."""
        if self._held:
            return
        blocks = frugal_forwards(self.vae.first_stage_model, checkpointing=False)
        like = torch.empty(0, device=self.vae.device, dtype=self.vae.vae_dtype)
        self._frugal = all(_agrees(block, forward, like) for block, forward in blocks.items())
        self._held = True
        if not self._frugal:
            self._made.clear()
            log.warning("This VAE's blocks are not those of FLUX's: decoding takes more memory for its gradient.")

    def _check_gradient(self, shape: tuple[int, ...]):
        """Once: see check_decoder."""
        if self._checked:
            return
        self._checked = True  # the check decodes, too
        try:
            check_decoder(self, (1, *shape[1:-2], SIDE, SIDE))
        except BaseException:
            self._checked = False
            raise

    def _recomputes(self, shape: tuple[int, ...]) -> bool:
        """Whether blocks run again for the gradient at latents of this shape: at large ones, if they can."""
        if shape[0] * shape[-2] * shape[-1] <= SMALL:
            return False
        if self._can_recompute is None:
            self._can_recompute = self._runs_again((1, *shape[1:-2], SIDE, SIDE))
        return self._can_recompute

    def _runs_again(self, shape: tuple[int, ...]) -> bool:
        """Some VAEs of videos keep what a block's next call goes on from, and fail where it is called out of turn."""
        try:
            with caches_put_back(self.vae.first_stage_model):
                self._counted(shape, recompute=True)
        except Exception as error:
            log.warning(
                "This VAE's blocks can't run again for the gradient (%r): keeping all takes more memory.", error
            )
            return False
        return True

    @contextlib.contextmanager
    def _differentiable(self, recompute: bool) -> Iterator[None]:
        frugal, model = self._forwards(recompute)
        with whole(self.vae.first_stage_model), replaced_forwards(frugal), model.open(self.vae.patcher):
            yield

    def _forwards(self, checkpointing: bool) -> tuple[dict[nn.Module, Callable], Differentiable]:
        if checkpointing not in self._made:
            model = self.vae.first_stage_model
            frugal = frugal_forwards(model, checkpointing) if self._frugal else {}
            settings = BlockSettings(checkpointing=checkpointing and not frugal)
            self._made[checkpointing] = frugal, Differentiable(model, settings=settings)
        return self._made[checkpointing]

    @contextlib.contextmanager
    def _says_what_fits(self, shape: tuple[int, ...], free: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(self._what_fits(shape, free)) from error

    def _what_fits(self, shape: tuple[int, ...], free: int) -> str:
        count = shape[0]
        ratio = self.vae.spacial_compression_decode()
        peak = self.memory(shape)[0]
        height, width = (ratio * side for side in shape[-2:])
        scale = min(1.0, count * free / peak) ** 0.5  # of each side, for one picture alone
        least = (self._token_side,) * 2
        fits = scaled(shape, scale, self._token_side)
        while fits != least and self.memory((1, *shape[1:-2], *fits))[0] > free:
            scale *= 0.95
            fits = scaled(shape, scale, self._token_side)
        advice = ["free memory"]
        if fits != least:
            advice.insert(0, f"set at_once to 1 and the size to {ratio * fits[1]}x{ratio * fits[0]}")
        if tiny := tiny_vae(self.latent_format, self.vae):
            advice.append(f"use a tiny VAE ({tiny}) here")
        return (
            f"Out of memory: decoding {count} of {width}x{height} with gradient takes {peak / GB:.1f} GB beside the "
            f"VAE's weights, and {free / GB:.1f} GB were free. Either {', or '.join(advice)}."
        )


def _own_format(latent_format: LatentFormat) -> LatentFormat:
    """The same, with means and deviations that autograd can compute with, whenever the host made them."""
    latent_format = copy(latent_format)
    for name, value in vars(latent_format).items():
        if torch.is_tensor(value):
            setattr(latent_format, name, own(value))
    return latent_format


def _range_of(vae: VAE) -> tuple[float, float]:
    """Factor and addend that bring what the VAE's decoder gives to [0, 1], as the host does, which clamps, too."""
    if not hasattr(vae, "process_output"):
        return 0.5, 0.5  # from [-1, 1], as of nearly all
    low, middle, high = vae.process_output(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    factor = 2 * (high - low)
    if abs(low + high - 2 * middle) > 1e-9 or factor <= 0:
        raise ValueError(
            f"This VAE ({type(vae.first_stage_model).__name__}) changes its pictures after decoding in a way through "
            "which no gradient is known: load the VAE that was published with the model."
        )
    return factor, middle - factor / 2


def tiny_vae(latent_format: LatentFormat, vae: VAE) -> str | None:
    """The name of the tiny VAE for latents of pictures, if there is one, and this is none.

    None is named for videos: what their pictures of a single frame are worth was not tried.
    """
    if latent_format.latent_dimensions != 2 or isinstance(vae.first_stage_model, TAESD):
        return None
    name = latent_format.taesd_decoder_name
    return name and name.removesuffix("_decoder").upper()


def scaled(shape: Shape, scale: float, multiple: int) -> tuple[int, int]:
    """Height and width of smaller latents, whole tokens of `multiple` places a side."""
    return tuple(max(multiple, int(scale * side) // multiple * multiple) for side in shape[-2:])


def frugal_forwards(model: nn.Module, checkpointing: bool) -> dict[nn.Module, Callable]:
    """Forwards that keep little for the backward, for the blocks of a VAE of FLUX's kind; none for other kinds.

    Peaks with backward at 1024x1024 in bf16: 3.0 GB, without checkpointing 4.6 GB; the host's own forwards: 8.0 GB.
    """
    forwards = {block: partial(_resnet, block) for block in model.modules() if _is_plain_resnet(block)}
    if forwards:
        attention = _class_of_host("AttnBlock")
        forwards |= {block: partial(_attention, block) for block in model.modules() if type(block) is attention}
    if checkpointing:
        kind = {"use_reentrant": False, "preserve_rng_state": False}
        forwards = {block: partial(checkpoint, forward, **kind) for block, forward in forwards.items()}
    return forwards


def _class_of_host(name: str) -> type | None:
    """A block of FLUX's VAE; None where the host has none of this name."""
    try:
        import comfy.ldm.modules.diffusionmodules.model as host
    except ImportError:
        return None
    return getattr(host, name, None)


def _is_plain_resnet(block: nn.Module) -> bool:
    if type(block) is not _class_of_host("ResnetBlock") or hasattr(block, "temb_proj"):
        return False
    parts = {"norm1": nn.GroupNorm, "conv1": nn.Conv2d, "norm2": nn.GroupNorm, "conv2": nn.Conv2d}
    plain = not getattr(block, "use_conv_shortcut", False)
    return plain and all(isinstance(getattr(block, name, None), kind) for name, kind in parts.items())


@torch.inference_mode()
def _agrees(block: nn.Module, forward: Callable, like: Tensor) -> bool:
    """Whether it gives what the block's own forward gives."""
    norm = next(filter(is_norm, block.modules()))
    x = torch.randn(1, norm.num_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(like)
    own = block(x.clone()).float()
    return bool((forward(x).float() - own).norm() <= AGREES * own.norm())


def _resnet(block: nn.Module, x: Tensor, *_: Any) -> Tensor:
    h = NormSiluConv.apply(x, block.norm1, block.conv1)
    h = NormSiluConv.apply(h, block.norm2, block.conv2)
    return h.add_(block.nin_shortcut(x) if hasattr(block, "nin_shortcut") else x)


def _attention(block: nn.Module, x: Tensor) -> Tensor:
    """The block by the attention that keeps no scores for the backward: one for each pair of places in a latent."""
    h = block.norm(x)
    q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None].contiguous() for part in (block.q, block.k, block.v))
    h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H * W, C)
    return x + block.proj_out(h[:, 0].transpose(1, 2).reshape(x.shape))
