"""Weights that the host streams to the device (dynamic VRAM), fetched a block at a time.

A block's transfer is under way while the block before it computes, in both directions, and what a recomputed block
fetched serves its backward too. The host does so for the models that ask it to; FLUX fetches layer by layer. Where the
host has no such queues, all models do.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import nn

from .compiled import is_compiled

NEEDED = ("make_prefetch_queue", "prefetch_queue_pop", "PREFETCH_QUEUES")


@contextlib.contextmanager
def fetching(patcher: ModelPatcher) -> Iterator[Callable[[nn.Module], None]]:
    """What to call with a block before it runs: nothing where nothing is streamed."""
    device = patcher.load_device
    streamed = patcher.is_dynamic() and not is_compiled(patcher)
    host = _host_prefetch()
    queue = host and host.make_prefetch_queue([], device, {"prefetch_dynamic_vbars": streamed})
    if queue is None:
        yield _nothing
        return

    def let_in(block: nn.Module | None):
        queue.append(block)
        host.prefetch_queue_pop(queue, device, block)

    def fetch(block: nn.Module):
        if not _is_fetched(block):
            let_in(block)

    queue.pop()  # the order of the blocks is theirs
    try:
        yield fetch
    finally:
        try:
            let_in(None)
        finally:
            # The host forgets its queues at the end of a prompt; one of training may take thousands.
            host.PREFETCH_QUEUES[:] = [q for q in host.PREFETCH_QUEUES if q is not queue]


def _host_prefetch() -> Any:
    """The host's module of such queues; None where it has none, or none of this kind."""
    try:
        import comfy.model_prefetch as host
    except ImportError:
        return None
    return host if all(hasattr(host, name) for name in NEEDED) else None


def _is_fetched(block: nn.Module) -> bool:
    """Whether its weights are there already: by a queue of the model's own, or as it was the last one that ran."""
    return any(hasattr(module, "_prefetch") for module in block.modules())


def _nothing(_: Any):
    pass
