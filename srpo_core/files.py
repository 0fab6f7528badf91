"""Writing files so that a crash leaves the old one or the new one, never half of one; checking and reading files."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds: virus scanners and synchronising services hold a new file for that long
IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError)


@contextmanager
def writing(folder: Path, reassurance: str = "") -> Iterator[None]:
    """What goes wrong with the disk inside is a RuntimeError, a sentence for the user that ends with `reassurance`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has no OSError
        in_the_way = isinstance(error, IN_THE_WAY)
        advice = "move away what lies there" if in_the_way else "make room on its disk, or let ComfyUI write there"
        raise RuntimeError(
            f"{folder} can't be written to ({error}): {advice}, and queue again. {reassurance}".strip()
        ) from error


def write_whole(path: Path, write: Callable[[Path], Any], reassurance: str = ""):
    """Let `write` fill a temporary file beside `path`, then rename: readers see the old file or the new one.

    Makes the folder. The file gets the permissions of any new one, though `write` may put one in its place that only
    its owner can read, as safetensors does.
    Raises RuntimeError, a sentence that ends with `reassurance`, on a full disk and the like, and
    what else `write` raises; nothing is left of the temporary file then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may fill one cache
    with writing(path.parent, reassurance):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            permissions = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            with suppress(OSError):  # some network shares have no permissions
                temporary.chmod(permissions)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # else a power cut can leave the new name with nothing in it
            replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def replace(source: Path, target: Path):
    """`os.replace`, tried again for a moment where another program holds one of the files, as Windows allows it."""
    for seconds in WAITS:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    os.replace(source, target)


@torch.inference_mode(False)  # autograd can't save what is made in it
def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file, in memory of their own.

    What safetensors itself gives stays mapped to the file, and Windows lets nobody replace a file that is mapped.
    Raises OSError and SafetensorError.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}


def check_writable(folder: Path, room: int = 0):
    """Make the folder and write to it. Raises RuntimeError, a sentence, where that fails or `room` bytes are not free.

    For what takes long, before it begins.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if (free := shutil.disk_usage(folder).free) < room:
            raise OSError(f"{free / 1e6:.0f} MB free, {room / 1e6:.0f} MB needed")


def check_file(path: Path):
    """Raises ValueError, a sentence, for what is no file that can be read; it is not opened before that is known."""
    name = path.name.encode("utf-8", "replace").decode()
    if name != path.name:
        raise ValueError(f"The name {name} holds what is no UTF-8: give the file another name.")
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
    except FileNotFoundError:
        if path.is_symlink():
            gone = f"{name} is a link to {os.readlink(path)}, where nothing is: put the file there, or a new link here."
            raise ValueError(gone) from None
        raise ValueError(f"There is no file {path}.") from None
    except OSError as error:
        raise ValueError(f"{name} can't be opened ({error.strerror}): let ComfyUI read it.") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder: choose a file of weights, such as the model.safetensors in it.")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} is a pipe, a socket or a device: choose a file of weights.")


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes, by any algorithm that hashlib knows."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def parse_json(text: str) -> Any:
    """What the text says. Raises ValueError where it is no JSON, or nested deeper than Python goes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
