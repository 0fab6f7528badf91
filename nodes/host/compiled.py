"""torch.compile, as the host's TorchCompileModel node sets it up for a MODEL: given up where it fails."""

import logging
from collections.abc import Callable
from typing import TypeVar

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch._dynamo.exc import TorchDynamoException

log = logging.getLogger(__name__)
T = TypeVar("T")


def or_uncompiled(patcher, ask: Callable[[], T]) -> T:
    """What `ask` gives, asked once more if compiling the patcher's model fails: it is not compiled any more then."""
    try:
        return ask()
    except TorchDynamoException as error:
        if not patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
            raise
        patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
        reason = str(getattr(error, "inner_exception", error)).strip().splitlines()
        log.warning("torch.compile failed (%s): training goes on without it, more slowly.", *reason[:1])
    return ask()
