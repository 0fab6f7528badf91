"""The VAE that ComfyUI loaded, as the core's Decoder."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, ResnetBlock, pytorch_attention
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...srpo_core.algorithm.protocols import Pullback
from ...srpo_core.algorithm.scaling import pulled
from ...srpo_core.run.memory import GB, LiveBytes
from .fitting import check_model
from .gradients.differentiable import BlockSettings, Differentiable
from .gradients.strips import NormSiluConv
from .patcher.forwards import replaced_forwards
from .patcher.loading import load
from .without_content import without_content

SMALL = 64 * 64  # places of a latent batch, up to which the decoder's activations are kept: recomputing costs a third


class HostDecoder:
    """Decodes latents of the MODEL's space with the host's VAE, differentiably.

    Raises ValueError when the VAE does not belong to the MODEL.
    """

    def __init__(self, vae: VAE, patcher: ModelPatcher):
        self.vae = vae
        self._made: dict[bool, tuple[dict[nn.Module, Callable], Differentiable]] = {}
        check_model(patcher)
        self.latent_format = patcher.get_model_object("latent_format")
        if vae.latent_dim != 2 or vae.latent_channels != self.latent_format.latent_channels:
            raise ValueError(
                f"This VAE has {vae.latent_channels} latent channels in {vae.latent_dim} dimensions, and "
                f"{type(patcher.model).__name__} has {self.latent_format.latent_channels} in 2: load the VAE that "
                "belongs to this model."
            )

    def decode(self, latent: Tensor) -> Pullback:
        """See Decoder. Out of memory, it and the way back raise torch.OutOfMemoryError that says which size fits."""
        vae = self.vae
        shape = latent.shape
        load(vae.patcher, vae.memory_used_decode(shape, vae.vae_dtype))
        free = comfy.model_management.get_free_memory(vae.device)
        with self._says_what_fits(shape, free), self._differentiable(shape):
            leaf = latent.clone().requires_grad_()
            image = self._image(leaf)

        def pull(gradient: Tensor) -> Tensor:
            load(vae.patcher)
            with self._says_what_fits(shape, free), self._differentiable(shape):
                image.backward(gradient.to(image))
                return leaf.grad

        return Pullback(image.detach(), lambda gradient: pulled(pull, gradient))

    def memory(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes beside the VAE's weights for latents (B, C, H, W): at most, and between decode and the way back."""
        device = self.vae.device
        with without_content(device, self.vae.first_stage_model), LiveBytes(device.type) as count:
            with self._differentiable(shape):
                leaf = torch.empty(shape, device=device, requires_grad=True)
                image = self._image(leaf)
                held = count.held
                image.backward(torch.ones_like(image))
        return count.peak, held

    def _image(self, latent: Tensor) -> Tensor:
        raw = self.latent_format.process_out(latent).to(self.vae.device, self.vae.vae_dtype)
        return self.vae.first_stage_model.decode(raw).float() / 2 + 0.5

    @contextlib.contextmanager
    def _differentiable(self, shape: tuple[int, ...]) -> Iterator[None]:
        frugal, model = self._forwards(shape[0] * shape[-2] * shape[-1] > SMALL)
        with replaced_forwards(frugal), model.open(self.vae.patcher):
            yield

    def _forwards(self, checkpointing: bool) -> tuple[dict[nn.Module, Callable], Differentiable]:
        if checkpointing not in self._made:
            frugal = frugal_forwards(self.vae.first_stage_model, checkpointing)
            model = self.vae.first_stage_model
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
        ratio = self.vae.upscale_ratio
        peak = self.memory(shape)[0]
        height, width = (ratio * side for side in shape[-2:])
        scale = min(1.0, count * free / peak) ** 0.5  # of each side, for one picture alone
        while (fits := _scaled(shape, scale)) != (2, 2) and self.memory((1, shape[1], *fits))[0] > free:
            scale *= 0.95
        advice = ["free memory"]
        if fits != (2, 2):
            advice.insert(0, f"set at_once to 1 and the size to {ratio * fits[1]}x{ratio * fits[0]}")
        if (tiny := self.latent_format.taesd_decoder_name) and not isinstance(self.vae.first_stage_model, TAESD):
            advice.append(f"use a tiny VAE ({tiny.removesuffix('_decoder').upper()}) here")
        return (
            f"Out of memory: decoding {count} of {width}x{height} with gradient takes {peak / GB:.1f} GB beside the "
            f"VAE's weights, and {free / GB:.1f} GB were free. Either {', or '.join(advice)}."
        )


def _scaled(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    return tuple(max(2, int(scale * side) // 2 * 2) for side in shape[-2:])


def frugal_forwards(model: nn.Module, checkpointing: bool) -> dict[nn.Module, Callable]:
    """Forwards that keep little for the backward, for the blocks of a VAE of FLUX's kind; none for other kinds.

    Peaks with backward at 1024x1024 in bf16: 3.0 GB, without checkpointing 4.6 GB; the host's own forwards: 8.0 GB.
    """
    forwards = {block: partial(_resnet, block) for block in model.modules() if _is_plain_resnet(block)}
    if forwards:
        forwards |= {block: partial(_attention, block) for block in model.modules() if type(block) is AttnBlock}
    if checkpointing:
        kind = {"use_reentrant": False, "preserve_rng_state": False}
        forwards = {block: partial(checkpoint, forward, **kind) for block, forward in forwards.items()}
    return forwards


def _is_plain_resnet(block: nn.Module) -> bool:
    plain = type(block) is ResnetBlock and not block.use_conv_shortcut and not hasattr(block, "temb_proj")
    return plain and isinstance(block.norm1, nn.GroupNorm) and isinstance(block.conv1, nn.Conv2d)


def _resnet(block: ResnetBlock, x: Tensor, *_: Any) -> Tensor:
    h = NormSiluConv.apply(x, block.norm1, block.conv1)
    h = NormSiluConv.apply(h, block.norm2, block.conv2)
    return h.add_(x if block.in_channels == block.out_channels else block.nin_shortcut(x))


def _attention(block: AttnBlock, x: Tensor) -> Tensor:
    """The block by the attention that keeps no scores for the backward: one for each pair of places in a latent."""
    h = block.norm(x)
    return x + block.proj_out(pytorch_attention(block.q(h), block.k(h), block.v(h)))
