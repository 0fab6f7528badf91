"""torch.compile: of a whole model, as the host's TorchCompileModel node sets it up, or of its blocks alone.

Given up where it fails. Blocks are compiled while all weights are on the device, so that nothing is to be fetched.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from .frozen import copy, is_ready

try:
    from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
except ImportError:
    COMPILE_KEY = "torch.compile"  # the name that it had

MAX_VARIANTS = 64  # of a block that are compiled: by shapes, with and without gradient, the first of its list

log = logging.getLogger(__name__)
T = TypeVar("T")


def run_on_copies(forward: Callable, *args: Any, **kwargs: Any):
    """A block writes into its inputs, which others may have kept. Compiled, the copies are never made."""
    args = [_copy(value) for value in args]
    kwargs = {name: _copy(value) for name, value in kwargs.items()}
    return forward(*args, **kwargs)


def _copy(value: Any):
    return copy(value) if torch.is_tensor(value) else value


run_compiled = torch.compile(run_on_copies, dynamic=False)


def many_variants() -> contextlib.AbstractContextManager:
    """Inside, a block may be compiled in as many variants as there are kinds of calls."""
    return torch._dynamo.config.patch(
        cache_size_limit=MAX_VARIANTS
    )  # recompile_limit, from 2.6; this name does for both


def are_resident(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all weights are on the device, in the type that they are used in."""
    like = torch.empty(0, device=device, dtype=dtype)
    return all(is_ready(module, like) for module in modules if getattr(module, "weight", None) is not None)


def is_compiled(patcher: ModelPatcher) -> bool:
    """Whether the whole model is."""
    return bool(patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY))


def or_uncompiled(flow: Any, ask: Callable[[], T], errors: tuple[type[Exception], ...] = (TorchDynamoException,)) -> T:
    """What `ask` gives, asked once more if compiling the flow's blocks or model fails: they are not compiled then.

    errors: as what that may come.
    """
    while True:
        try:
            return ask()
        except errors as error:
            if isinstance(error, torch.OutOfMemoryError) or not _give_up(flow):
                raise
            reason = str(getattr(error, "inner_exception", error)).strip().splitlines()
            log.warning(
                "With torch.compile it failed (%s): it is tried again, and goes on, without it, more slowly.",
                *reason[:1],
            )


def _give_up(flow: Any) -> bool:
    """Whether there was something compiled."""
    if flow.differentiable.settings.compiled:
        flow.differentiable.give_up_compiling()
        return True
    found = is_compiled(flow.patcher)
    flow.patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    return found
