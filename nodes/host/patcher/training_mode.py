"""The host's switches for training, which newer hosts have more of."""

import contextlib
from collections.abc import Iterator

import comfy.cli_args
import comfy.model_management


@contextlib.contextmanager
def training_mode() -> Iterator[None]:
    """Inside, the host uses what has a backward.

    That is: no kernels that fuse several layers, nor its model compiler, whose allocations end with a forward. What of
    this the host has no switch for, it does not have.
    """
    switches = [(comfy.model_management, "in_training"), (comfy.cli_args.args, "disable_comfy_compiler")]
    switches = [(place, name, getattr(place, name)) for place, name in switches if hasattr(place, name)]
    try:
        for place, name, _ in switches:
            setattr(place, name, True)
        yield
    finally:
        for place, name, before in switches:
            setattr(place, name, before)
