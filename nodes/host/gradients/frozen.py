"""Layers with constant weights, as forwards that pass gradients to their input and keep next to nothing for that.

Linear layers and convolutions save nothing and fetch their weight again for the backward; norms read a copy of their
input; layers of an unknown kind run again, and so do those that are called with more than their input, such as an
activation that a newer host has them apply first. So weights may be inference tensors (which autograd refuses to save),
offloaded, cast or quantised.

Where a layer quantises its input as well (int8, and fp8, nvfp4 and mxfp8 on cards that multiply them), the gradient is
the straight-through one: that of the dequantised weight on the plain input.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..patcher.loading import own
from .ordinary import ordinary_tensors

CONVOLUTIONS = {
    nn.Conv1d: torch.nn.grad.conv1d_input,
    nn.Conv2d: torch.nn.grad.conv2d_input,
    nn.Conv3d: torch.nn.grad.conv3d_input,
}
PLAIN = (torch.float32, torch.bfloat16, torch.float16)
NORMS = {  # not those of F, which are others meanwhile (see kernels.py)
    nn.LayerNorm: lambda m, x, weight, bias: torch.layer_norm(x, m.normalized_shape, weight, bias, m.eps),
    nn.RMSNorm: lambda m, x, weight, bias: torch.rms_norm(x, m.normalized_shape, weight, m.eps),
    nn.GroupNorm: lambda m, x, weight, bias: torch.group_norm(x, m.num_groups, weight, bias, m.eps),
}


def frozen_forwards(root: nn.Module) -> dict[nn.Module, Callable]:
    """The forward of each weight-bearing leaf (and each norm) that passes gradients to its input alone."""
    forwards = {}
    for module in root.modules():
        if forward := _frozen_forward(module, module.forward):
            forwards[module] = forward
    return forwards


def _frozen_forward(module: nn.Module, forward: Callable) -> Callable | None:
    norm = _class_among(module, NORMS)
    if norm and _is_known(module):
        return lambda x: _norm(module, NORMS[norm], x) if needs_gradient(x) else forward(x)
    if module._modules or not (norm or any(p is not None for p in module._parameters.values())):
        return None
    kind = FrozenLinear if _is_known(module) and _is_linear_in_its_input(module) else Recomputed
    return kind(module, forward)


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, tuple(NORMS))


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer of whatever kind: the host's quantised ones are no nn.Linear."""
    return hasattr(module, "in_features") and type(module).forward is not nn.Module.forward


def is_stored_plainly(module: nn.Module) -> bool:
    """Whether its weight, if it has one, is no quantised one, whose layer may round its input too."""
    weight = module._parameters.get("weight")
    return weight is None or (type(weight) in (Tensor, nn.Parameter) and weight.dtype in PLAIN)


def is_stored_in_integers(module: nn.Module) -> bool:
    """Whether its weight is quantised to integers, for which the host has kernels that fuse it with its neighbours."""
    weight = module._parameters.get("weight")
    return isinstance(weight, QuantizedTensor) and not weight.storage_dtype.is_floating_point


def needs_gradient(x: Any) -> bool:
    return torch.is_tensor(x) and x.requires_grad and torch.is_grad_enabled()


def _is_known(module: nn.Module) -> bool:
    """Whether its forward is torch's or the host's own, and so its weight what `weight_of` says."""
    kind = type(module)
    if getattr(module.forward, "__func__", None) is not kind.forward:
        return False  # somebody replaced it
    if hasattr(module, "cast_bias_weight"):
        return True
    sources = {kind.forward.__module__, getattr(kind, "forward_comfy_cast_weights", kind.forward).__module__}
    return all(source == comfy.ops.__name__ or source.startswith("torch.nn.") for source in sources)


def _is_linear_in_its_input(module: nn.Module) -> bool:
    if _class_among(module, CONVOLUTIONS):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return is_linear(module)


def _class_among(module: nn.Module, classes: Iterable[type]) -> type | None:
    return next((each for each in classes if isinstance(module, each)), None)


@contextlib.contextmanager
def weight_of(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The layer's weight and bias as the host would use them on `like`, wherever and however they are stored.

    Raises ValueError for a layer that has no weight of its own.
    """
    check_has_weight(module)
    if is_ready(module, like):
        yield module.weight, getattr(module, "bias", None)
        return
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF's layers dequantise in a method of this name
        yield module.cast_bias_weight(like)
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        # A quantised weight comes as it is stored when its nominal type is that of `like`.
        yield weight.dequantize() if isinstance(weight, QuantizedTensor) else weight, bias
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def check_has_weight(module: nn.Module):
    """Raises ValueError for a layer that has no weight of its own."""
    if not hasattr(module, "weight"):
        kind = type(module)
        raise ValueError(
            f"A layer of the kind {kind.__module__}.{kind.__qualname__} has no weight of its own: the model's layers "
            "were put together in a way that is not known here. Load the model with ComfyUI's own Load Diffusion Model."
        )


def is_ready(module: nn.Module, like: Tensor) -> bool:
    """Whether the host would use the parameters as they are stored; asking it takes longer than a small layer."""
    weight = module.weight
    bias = getattr(module, "bias", None)
    if weight is None or not hasattr(module, "weight_function"):
        return True
    if module.weight_function or module.bias_function or type(weight) is not nn.Parameter:
        return False
    return all(p is None or (p.device == like.device and p.dtype == like.dtype) for p in (weight, bias))


def copy(tensor: Tensor) -> Tensor:
    """A copy, also of ComfyUI-GGUF's kind of tensor, which returns itself for a clone and makes more of its kind."""
    return torch.clone(tensor if type(tensor) in (Tensor, nn.Parameter) else tensor.as_subclass(Tensor))


def _norm(module: nn.Module, norm: Callable, x: Tensor) -> Tensor:
    # Copies, because autograd saves all three: the block goes on to write into x, and parameters may be
    # inference tensors or cast buffers.
    with weight_of(module, x) as (weight, bias):
        weight, bias = (None if p is None else copy(p) for p in (weight, bias))
    return norm(module, copy(x), weight, bias)


class FrozenLinear:
    """The forward of a linear layer or convolution with a constant weight."""

    def __init__(self, module: nn.Module, forward: Callable):
        self.module = module
        self._forward = forward
        # The host's fp8 layers write into their input, which autograd may have saved before.
        self._writes = isinstance(module, getattr(getattr(comfy.ops, "fp8_ops", None), "Linear", ()))

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_alone(args, kwargs):
            return _recomputed(self.module, self._leaving_its_input, x, *args, **kwargs)
        return _ThroughLinear.apply(x, self) if needs_gradient(x) else self._forward(x, *args, **kwargs)

    def plain(self, x: Tensor) -> Tensor:
        """Its output, without a graph."""
        y = self._leaving_its_input(x)
        # F.linear may return a view, and autograd forbids writing into a view that a Function returned.
        return torch.ops.aten._unsafe_view(y, y.shape)

    def _leaving_its_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._forward(copy(x) if self._writes else x, *args, **kwargs)

    def pull(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient at the input, of this shape, given that at the output."""
        m = self.module
        with weight_of(m, gradient) as (weight, _):
            if kind := _class_among(m, CONVOLUTIONS):
                to_input = CONVOLUTIONS[kind]
                gradient = to_input(shape, weight, gradient, m.stride, m.padding, m.dilation, m.groups)
            else:
                gradient = gradient @ weight
        if (scale := getattr(m, "pre_quant_scale", None)) is not None:  # of the input, with which it left the weight
            gradient = gradient * scale.to(gradient)
        return gradient


class _ThroughLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear):
        ctx.layer = layer
        ctx.shape = x.shape
        return layer.plain(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        return ctx.layer.pull(gradient, ctx.shape), None


class Recomputed:
    """The forward of a leaf of a kind we don't know: it runs again for the backward."""

    def __init__(self, module: nn.Module, forward: Callable):
        self.module = module
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return _recomputed(self.module, self.forward, *args, **kwargs)


def _recomputed(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a leaf, which gives one tensor or several, with gradients for whichever inputs want one."""
    values = (*args, *kwargs.values())
    if not any(map(needs_gradient, values)):
        return forward(*args, **kwargs)

    def again(*values: Any) -> Tensor:
        return forward(*values[: len(args)], **dict(zip(kwargs, values[len(args) :])))

    # The block may go on to write into them; where that matters, keep copies.
    keeps = copy if not is_linear(module) or len(values) > 1 else lambda tensor: tensor
    return _ThroughRecomputed.apply(module, again, keeps, *values)


class _ThroughRecomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: nn.Module, forward: Callable, keeps: Callable, *values: Any):
        ctx.module = module
        ctx.forward = forward
        ctx.wanted = ctx.needs_input_grad[3:]
        ctx.save_for_backward(*(keeps(value) for value, wanted in zip(values, ctx.wanted) if wanted))
        ctx.others = [
            keeps(value) if torch.is_tensor(value) else value for value, wanted in zip(values, ctx.wanted) if not wanted
        ]
        ctx.set_materialize_grads(False)
        output = forward(*values)
        return output.clone() if torch.is_tensor(output) else tuple(map(own, output))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        with torch.enable_grad(), ordinary_tensors([ctx.module], quantised=True):
            leaves = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
            inputs = _merged(ctx.wanted, leaves, ctx.others)
            try:
                output = ctx.forward(*inputs)
                outputs = (output,) if torch.is_tensor(output) else output
                ways = [(part, gradient) for part, gradient in zip(outputs, gradients) if gradient is not None]
                gradients = torch.autograd.grad([part for part, _ in ways], leaves, [gradient for _, gradient in ways])
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise _no_gradient(ctx.module, error) from error
        return None, None, None, *_merged(ctx.wanted, gradients, [None] * len(ctx.others))


def _merged(first: Iterable[bool], ones: Iterable, others: Iterable) -> list:
    """Both in one list: at each place the next of `ones`, or, where `first` is not true, of `others`."""
    ones = iter(ones)
    others = iter(others)
    return [next(ones if is_one else others) for is_one in first]


def is_alone(args: tuple, kwargs: dict) -> bool:
    """Whether a layer is called with nothing but its input."""
    return all(value is None for value in (*args, *kwargs.values()))


def _no_gradient(module: nn.Module, reason: Any) -> ValueError:
    kind = type(module)
    return ValueError(
        f"This MODEL can't be trained as it is: its layers of the kind {kind.__module__}.{kind.__qualname__} pass no "
        f"gradient back ({reason}). Load it with ComfyUI's own Load Diffusion Model (bf16, fp16, fp8 and ComfyUI's "
        "quantised files), or as GGUF; if another node brought these layers, take it off the MODEL."
    )
