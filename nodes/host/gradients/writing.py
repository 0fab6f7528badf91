"""Models whose blocks write into what autograd saved of them: once it refuses such a model, it saves copies of it.

Copies cost memory and time, so a model that autograd takes as it is has none.
"""

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .frozen import copy

REFUSED = "modified by an inplace operation"  # what autograd says of them

log = logging.getLogger(__name__)
T = TypeVar("T")
_writing: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def saving(model: nn.Module) -> Callable[[], contextlib.AbstractContextManager]:
    """What a part of the model runs in: in it, what autograd saves is a copy, if the model writes into it later."""
    return _copies_saved if model in _writing else contextlib.nullcontext


def or_on_copies(model: nn.Module, ask: Callable[[], T], *, again: bool = True) -> T:
    """What `ask` gives, with gradients through the model; asked once more, with copies saved, if autograd refuses.

    again: whether it can be asked once more. Raises ValueError where it would have to be, and can't.
    """
    try:
        return ask()
    except RuntimeError as error:
        if REFUSED not in str(error) or model in _writing:
            raise
        _writing.add(model)
        if not again:
            raise ValueError(_FOUND_LATE.format(name=type(model).__name__, error=error)) from error
    log.warning(
        "%s writes into what its layers keep for the gradient, so they keep copies: one block, while it runs again, "
        "takes up to twice the memory.",
        type(model).__name__,
    )
    return ask()


_FOUND_LATE = (
    "{name} writes into what its layers keep for the gradient, which showed only in the middle of an update: nothing "
    "of that update is kept. Queue it again: from now on, until the model is loaded anew, they keep copies ({error})."
)


def _copies_saved() -> contextlib.AbstractContextManager:
    return saved_tensors_hooks(lambda tensor: copy(tensor.detach()), _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
