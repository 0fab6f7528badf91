"""What VAEs of videos keep from one piece of a video to the next, while one frame is decoded with gradient."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Where the host's tiny VAEs of videos decode in pieces, which they detach, they do it as a whole meanwhile."""
    in_pieces = getattr(model, "parallel", None) is False
    try:
        if in_pieces:
            model.parallel = True
        yield
    finally:
        if in_pieces:
            model.parallel = False


@contextlib.contextmanager
def caches_put_back(model: nn.Module) -> Iterator[None]:
    """The dictionaries in which its modules keep such things are as before on leaving, also by an exception."""
    held = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, dict) and not name.startswith("_")
    ]
    before = [dict(value) for value in held]
    try:
        yield
    finally:
        for value, earlier in zip(held, before):
            value.clear()
            value.update(earlier)
