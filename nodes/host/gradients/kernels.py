"""What models call by name and has no backward, or is spoilt by what they write, replaced while a gradient is wanted.

A TorchFunctionMode would not do: torch suspends those in a backward, where blocks run again, and other threads have
none. So the names themselves are others for that time; where no gradient passes, each does what it did.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import comfy.quant_ops
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from .frozen import copy, needs_gradient

FUNCTIONAL_NORMS = ("layer_norm", "rms_norm", "group_norm")


@contextlib.contextmanager
def kernels_with_backward() -> Iterator[None]:
    """Inside, the host's fused kernels, norms by function, and sums into an `out` pass gradients."""
    replaced = [(F, name, _on_copy) for name in FUNCTIONAL_NORMS]
    replaced.append((torch, "add", _without_out))
    replaced += [(kitchen, name, lambda _, plain=plain: _ordinary(plain)) for kitchen, name, plain in _plain_kernels()]
    before = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    try:
        for (place, name, other), (_, _, function) in zip(replaced, before):
            setattr(place, name, _where_gradients_pass(function, other(function)))
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _plain_kernels() -> Iterator[tuple[ModuleType, str, Callable]]:
    """Of each fused kernel that the host's library has in plain torch, too: where it is called, its name, that form."""
    kitchen = getattr(comfy.quant_ops, "ck", None)
    eager = getattr(getattr(kitchen, "backends", None), "eager", None)
    for part in (getattr(eager, name, None) for name in ("rope", "adaln")):
        for name, function in vars(part).items() if part else ():
            own = getattr(function, "__module__", "") == part.__name__ and not name.startswith("_")
            if own and callable(function) and hasattr(kitchen, name) and not name.endswith("_"):
                yield kitchen, name, function


def _where_gradients_pass(function: Callable, other: Callable) -> Callable:
    def chosen(*args: Any, **kwargs: Any):
        passes = any(map(needs_gradient, args)) or any(map(needs_gradient, kwargs.values()))
        return (other if passes else function)(*args, **kwargs)

    return chosen


def _ordinary(function: Callable) -> Callable:
    """On ordinary tensors: autograd can't save a weight that is an inference tensor."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if tensor.is_inference() else tensor

    return lambda *args, **kwargs: function(*tree_map_only(torch.Tensor, own, args), **kwargs)


def _on_copy(norm: Callable) -> Callable:
    """Of a copy of its input, which the norm saves, and into which a block may go on to write."""
    return _ordinary(lambda x, *args, **kwargs: norm(copy(x), *args, **kwargs))


def _without_out(add: Callable) -> Callable:
    """The sum is returned alone: a block that wrote it into its input as well has that from the caller no more."""

    def summed(*args: Any, out: torch.Tensor | None = None, **kwargs: Any):
        return add(*args, **kwargs)

    return summed
