"""What a family of `bench.fuzz` is made of."""

import random
from collections.abc import Callable
from pathlib import Path

Attempt = Callable[[random.Random, Path], None]  # makes an input in the folder and tries it


class Found(Exception):
    """Something that an input brought about and must not."""
