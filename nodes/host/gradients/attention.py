"""FLUX's attention where a gradient is wanted, and the quicker one of a card."""

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.ldm.flux.model
import comfy.ops
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend


def with_backward(options: dict, model: nn.Module) -> dict:
    """The transformer options of a step of the diffusion model `model` through which a gradient shall pass."""
    options = options | {"optimized_attention_override": _attention}
    if isinstance(model, comfy.ldm.flux.model.Flux):
        patches = options.get("patches", {})
        options["patches"] = patches | {"attn1_patch": [*patches.get("attn1_patch", ()), _rotate]}
    return options


def _attention(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def _rotate(q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None = None, **_: Any) -> dict:
    """FLUX's positions, by the host's fused kernel of a GPU: autograd makes many passes of its plain operations.

    torch.compile fuses those.
    """
    if pe is None or q.device.type == "cpu" or torch.compiler.is_compiling() or not _has_fused_positions():
        return {}
    q, k = _Rotated.apply(q, k, pe)
    return {"q": q, "k": k, "pe": None}


def _has_fused_positions() -> bool:
    return hasattr(getattr(comfy.quant_ops, "ck", None), "apply_rope")


class _Rotated(torch.autograd.Function):
    """q and k (B, heads, N, D), rotated by pe (1, 1, N, D / 2, 2, 2); the way back is the other way round."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, pe: Tensor):
        ctx.save_for_backward(pe)
        return comfy.quant_ops.ck.apply_rope(q, k, pe)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        (pe,) = ctx.saved_tensors
        return *comfy.quant_ops.ck.apply_rope(*gradients, pe.transpose(-1, -2).contiguous()), None


@contextlib.contextmanager
def quickest(device: torch.device, compiled: bool) -> Iterator[None]:
    """On Hopper, cuDNN's attention comes first, unless it would be compiled (see bench/RESULTS.md).

    A block's of FLUX at 720x720 takes 0.15 ms then instead of 0.31, and with backward 0.61 instead of 1.11 (H200).
    """
    priority: list[SDPBackend] = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", [])
    before = list(priority)
    if device.type == "cuda" and not compiled and torch.cuda.get_device_capability(device)[0] == 9:
        priority.sort(key=lambda backend: backend is not SDPBackend.CUDNN_ATTENTION)
    try:
        yield
    finally:
        priority[:] = before
