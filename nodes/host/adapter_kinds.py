"""What is trained on one linear layer: an adapter of the host, or the whole layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from comfy.weight_adapter import adapter_maps
from comfy.weight_adapter.base import WeightAdapterTrainBase
from torch import Tensor, nn

from .differentiable import weight_of

FULL = "full"
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


def create(kind: str, layer: nn.Linear, rank: int, alpha: float, dtype: torch.dtype) -> WeightAdapterTrainBase:
    """One that changes nothing yet, its trained parameters of this dtype, on the CPU.

    kind: FULL, or a key of the host's `adapter_maps`, where rank and alpha are explained.
    """
    if kind == FULL:
        return FullDiff(layer, dtype)
    # Only shape and device are read of it; the weight itself may be packed or elsewhere.
    weight = torch.empty(1).expand(layer.out_features, layer.in_features)
    adapter = adapter_maps[kind].create_train(weight, rank=rank, alpha=alpha).train()
    adapter.requires_grad_(True)
    adapter.alpha.requires_grad_(False)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if kind == "OFT":
        adapter.g = _but_for_the_bias(adapter.g, layer)
    adapter.h = _in_the_type_of_its_input(_loha(adapter) if kind == "LoHa" else adapter.h, dtype)
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


def _in_the_type_of_its_input(h: Callable, dtype: torch.dtype) -> Callable:
    """The model may run in another type than the parameters; the lesser of the two decides."""

    def cast(x: Tensor, base_out: Tensor) -> Tensor:
        lesser = x.dtype if x.dtype in HALF else dtype
        with torch.autocast(x.device.type, dtype=lesser, enabled=lesser in HALF):
            return h(x, base_out).to(x.dtype)

    return cast
