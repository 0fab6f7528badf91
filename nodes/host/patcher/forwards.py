"""Other forwards of a model's modules, for a while."""

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


@contextlib.contextmanager
def replaced_forwards(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """Replace the modules' forwards, and put back what was there."""
    before = [(module.__dict__, module.__dict__.get("forward")) for module in forwards]
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward  # as setting it does, in a fiftieth of the time
        yield
    finally:
        for attributes, forward in before:
            if forward is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = forward
