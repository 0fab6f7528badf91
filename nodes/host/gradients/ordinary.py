"""Ordinary tensors in place of inference tensors, which is what loader nodes make, and autograd refuses to save."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

PLAIN_TYPES = (Tensor, nn.Parameter)


def ordinary(tensor: Tensor) -> Tensor:
    """An ordinary tensor in the same memory."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextlib.contextmanager
def ordinary_tensors(modules: Iterable[nn.Module], *, quantised: bool = False) -> Iterator[None]:
    """Inside, these modules' own parameters and buffers are ordinary tensors, in the same memory.

    quantised: whether tensors of other types than torch's own are, too: they are copied.
    """
    replaced = []
    try:
        for store, name, tensor in _inference_tensors(modules):
            if quantised or type(tensor) in PLAIN_TYPES:
                store[name] = _in_place_of(tensor)
                replaced.append((store, name, tensor, store[name]))
        yield
    finally:
        for store, name, tensor, other in replaced:
            if store.get(name) is other:  # the host may have loaded it anew
                store[name] = tensor


def holds_tensors(module: nn.Module) -> bool:
    """Whether it has parameters or buffers of its own, and not only its parts have."""
    return any(tensor is not None for store in _stores(module) for tensor in store.values())


def _stores(module: nn.Module) -> tuple[dict, dict]:
    return module._parameters, module._buffers


def _inference_tensors(modules: Iterable[nn.Module]) -> list[tuple[dict, str, Tensor]]:
    """Where each lies, its name there, and itself."""
    stores = [store for module in modules for store in _stores(module)]
    named = [(store, name, tensor) for store in stores for name, tensor in store.items()]
    return [(store, name, tensor) for store, name, tensor in named if tensor is not None and tensor.is_inference()]


def _in_place_of(tensor: Tensor) -> Tensor:
    other = ordinary(tensor) if type(tensor) in PLAIN_TYPES else tensor.clone()
    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other
