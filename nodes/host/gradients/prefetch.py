"""Weights that the host streams to the device (dynamic VRAM), fetched a block at a time.

A block's transfer is under way while the block before it computes, in both directions, and what a recomputed block
fetched serves its backward too. The host does so for the models that ask it to; FLUX fetches layer by layer.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from comfy import model_prefetch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .compiled import is_compiled


@contextlib.contextmanager
def fetching(patcher: ModelPatcher) -> Iterator[Callable[[nn.Module], None]]:
    """What to call with a block before it runs: nothing where nothing is streamed."""
    device = patcher.load_device
    streamed = patcher.is_dynamic() and not is_compiled(patcher)
    queue = model_prefetch.make_prefetch_queue([], device, {"prefetch_dynamic_vbars": streamed})
    if queue is None:
        yield _nothing
        return

    def fetch(block: nn.Module | None):
        queue.append(block)
        model_prefetch.prefetch_queue_pop(queue, device, block)

    queue.pop()  # the order of the blocks is theirs
    try:
        yield fetch
    finally:
        fetch(None)
        # The host forgets its queues at the end of a prompt; one of training may take thousands.
        model_prefetch.PREFETCH_QUEUES[:] = [q for q in model_prefetch.PREFETCH_QUEUES if q is not queue]


def _nothing(_: Any):
    pass
