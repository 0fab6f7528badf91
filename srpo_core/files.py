"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]):
    """Let `write` fill a temporary file beside `path`, then rename: readers see the old file or the new one.

    Raises what `write` raises, such as OSError on a full disk; nothing is left of the temporary file then.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes, by any algorithm that hashlib knows."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
