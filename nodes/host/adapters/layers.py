"""What is trained on one linear layer: an adapter of the host, or the whole layer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from comfy.weight_adapter import adapter_maps
from comfy.weight_adapter.base import WeightAdapterTrainBase
from comfy.weight_adapter.lora import LoraDiff
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..gradients.frozen import FrozenLinear, weight_of
from .settings import AdapterSettings

HALF = (torch.bfloat16, torch.float16)


class FullDiff(WeightAdapterTrainBase):
    """The differences of a layer's weight and bias, by their names in a LoRA file; zero at the start.

    Differences, not weights: the model stays as it is and shared, and in bf16 a small step vanishes beside a large
    weight, but not beside a small difference. What is rounded off there, an optimiser with Kahan sums keeps.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(layer.out_features, layer.in_features, dtype=dtype))
        self.diff_b = None if layer.bias is None else nn.Parameter(torch.zeros(layer.out_features, dtype=dtype))

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        return F.linear(x, self.diff.to(x.dtype), None if self.diff_b is None else self.diff_b.to(x.dtype))


class Lora(LoraDiff):
    """The host's LoRA, by the product that adds it to the layer's output.

    The host's own way passes three times more over each output, of which FLUX.1-dev at 720x720 has 7 GB a forward.
    """

    scale: float  # alpha / rank

    def bypass_forward(self, layer: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = _lesser(x.dtype, self.lora_down.weight.dtype)
        fused = dtype == x.dtype and not (args or kwargs or torch.compiler.is_compiling())
        if fused and torch.is_grad_enabled() and isinstance(layer, FrozenLinear):
            return _ThroughLoraLinear.apply(x, self.lora_down.weight, self.lora_up.weight, self.scale, layer)
        y = layer(x, *args, **kwargs)
        hidden = self.scale * F.linear(x.to(dtype), self.lora_down.weight.to(dtype))
        up = self.lora_up.weight.to(dtype)
        if fused and y.is_contiguous() and not torch.is_grad_enabled():
            return _add_product(y, hidden, up.t())
        return y + F.linear(hidden, up).to(y.dtype)


class _ThroughLoraLinear(torch.autograd.Function):
    """layer(x) + scale * x @ down.T @ up.T of a layer with a constant weight, in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, layer: FrozenLinear):
        ctx.scale = scale
        ctx.layer = layer
        hidden = scale * F.linear(x, down.to(x.dtype))
        ctx.save_for_backward(x, hidden, down, up)
        return _add_product(layer.plain(x), hidden, up.to(x.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        x, hidden, down, up = ctx.saved_tensors
        at_rows = gradient.flatten(0, -2)
        at_hidden = ctx.scale * (at_rows @ up.to(x.dtype))
        at_down = at_hidden.t() @ x.flatten(0, -2)
        at_up = at_rows.t() @ hidden.flatten(0, -2)
        at_x = None
        if ctx.needs_input_grad[0]:
            at_x = _add_product(ctx.layer.pull(gradient, x.shape), at_hidden, down.to(x.dtype))
        return at_x, at_down.to(down.dtype), at_up.to(up.dtype), None, None


def _add_product(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y + a @ b, in place."""
    y.view(-1, y.shape[-1]).addmm_(a.flatten(0, -2), b)
    return y


def create(layer: nn.Linear, settings: AdapterSettings, dtype: torch.dtype) -> WeightAdapterTrainBase:
    """One that changes nothing yet, its trained parameters of this dtype, on the CPU."""
    if settings.whole_layers:
        return FullDiff(layer, dtype)
    kind = settings.kind
    # Only shape and device are read of it; the weight itself may be packed or elsewhere.
    weight = torch.empty(1).expand(layer.out_features, layer.in_features)
    adapter = adapter_maps[kind].create_train(weight, rank=settings.rank, alpha=settings.alpha).train()
    adapter.requires_grad_(True)
    adapter.alpha.requires_grad_(False)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if kind == "LoRA":
        adapter.__class__ = Lora  # its parameters are there already
        adapter.scale = settings.alpha / settings.rank
        return adapter
    if kind == "OFT":
        adapter.g = _but_for_the_bias(adapter.g, layer)
    adapter.h = in_the_type_of_its_input(_loha(adapter) if kind == "LoHa" else adapter.h, dtype)
    return adapter


def _loha(adapter: WeightAdapterTrainBase) -> Callable:
    """The host's LoHa can change a weight, but has no h."""

    def h(x: Tensor, base_out: Tensor) -> Tensor:
        zero = torch.zeros((), device=x.device).expand(base_out.shape[-1], x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            difference = adapter(zero)
        return F.linear(x, difference)

    return h


def _but_for_the_bias(g: Callable, layer: nn.Linear) -> Callable:
    """OFT's g turns the bias with the output, which its file can't say: loaded, it turns the weight alone. In fp32."""

    def turn(y: Tensor) -> Tensor:
        with weight_of(layer, y) as (_, bias), torch.autocast(y.device.type, enabled=False):
            if bias is None:
                return g(y.float()).to(y.dtype)
            return (g(y.float() - bias) + bias).to(y.dtype)

    return turn


def in_the_type_of_its_input(h: Callable, dtype: torch.dtype) -> Callable:
    """The model may run in another type than the parameters."""

    def cast(x: Tensor, base_out: Tensor) -> Tensor:
        lesser = _lesser(x.dtype, dtype)
        with torch.autocast(x.device.type, dtype=lesser, enabled=lesser in HALF):
            return h(x, base_out).to(x.dtype)

    return cast


def _lesser(of_input: torch.dtype, of_parameters: torch.dtype) -> torch.dtype:
    """The type in which an adapter computes."""
    return of_input if of_input in HALF else of_parameters
