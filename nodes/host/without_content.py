"""The host's models on tensors without content: what they would need is found without a byte on the device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextlib.contextmanager
def without_content(device: torch.device, *roots: nn.Module) -> Iterator[None]:
    """Inside, new tensors have no content, and neither do these modules' weights, which are on the device."""
    stores = [store for root in roots for m in root.modules() for store in (m._parameters, m._buffers)]
    before = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            for store, name, tensor in before:
                store[name] = _stand_in(tensor, device)
            yield
        finally:
            for store, name, tensor in before:
                store[name] = tensor


def _stand_in(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
