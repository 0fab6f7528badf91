"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def writing(folder: Path, kept: str = "") -> Iterator[None]:
    """What goes wrong with the disk inside is a RuntimeError, a sentence for the user that ends with `kept`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has no OSError
        raise RuntimeError(
            f"{folder} can't be written to ({error}): make room on its disk, or let ComfyUI write there, and queue "
            f"again. {kept}".strip()
        ) from error


def write_whole(path: Path, write: Callable[[Path], Any], kept: str = ""):
    """Let `write` fill a temporary file beside `path`, then rename: readers see the old file or the new one.

    Makes the folder. Raises RuntimeError, a sentence that ends with `kept`, on a full disk and the like, and what else
    `write` raises; nothing is left of the temporary file then.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path.parent, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def check_writable(folder: Path, room: int = 0):
    """Make the folder and write to it. Raises RuntimeError, a sentence, where that fails or `room` bytes are not free.

    For what takes long, before it begins.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if (free := shutil.disk_usage(folder).free) < room:
            raise OSError(f"{free / 1e6:.0f} MB free, {room / 1e6:.0f} MB needed")


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes, by any algorithm that hashlib knows."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
