"""What a family of `bench.fuzz` is made of."""

import random
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

Attempt = Callable[[random.Random, Path], None]  # makes an input in the folder and tries it


class Found(Exception):
    """Something that an input brought about and must not."""


def finite(file: Path) -> bool:
    """Whether all that a file of tensors holds is finite."""
    return all(tensor.isfinite().all() for tensor in load_file(file).values() if tensor.is_floating_point())
