"""Encoded prompts, kept on disk, so that text encoders run once for each prompt."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import read_safetensors, write_whole

log = logging.getLogger(__name__)

Conditioning = list  # [context (B, T, D), {"pooled_output": (B, P) or None, ...}], as in ComfyUI's CONDITIONING
CONTEXT = "context"  # the name of a tensor in a file
EXTRA = "with."  # what the names of the others begin with


class Conditionings:
    """Conditionings by key, each in a file of its own in `folder`; None keeps them in memory alone.

    In memory, too, stays one that holds more than tensors and plain values. Read from disk they equal what was added,
    bit for bit, on the CPU. FLUX's take 4 MB each, so none is read before it is asked for.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._in_memory: dict[str, Conditioning] = {}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not known, each once; a file that can't be read is not known."""
        return [key for key in dict.fromkeys(keys) if key not in self._in_memory and not self._readable(key)]

    def add(self, key: str, conditioning: Conditioning):
        """Keep it. On disk it is written whole or not at all."""
        if self.folder and _storable(conditioning):
            try:
                return write_whole(self._file(key), lambda path: _save(path, conditioning))
            except RuntimeError as error:  # in memory it is, so no more is lost than time at the next start
                log.warning("An encoded prompt is not kept for the next start: %s", error)
        self._in_memory[key] = conditioning

    def get(self, key: str) -> Conditioning:
        """Raises ValueError if its file has gone since it was added or found."""
        if key in self._in_memory:
            return self._in_memory[key]
        try:
            return _load(self._file(key))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The encoded prompt {self._file(key)} was removed or changed while it was in use ({error}): "
                "restart ComfyUI, and it is encoded again."
            ) from error

    def _file(self, key: str) -> Path:
        assert self.folder, "a conditioning that is not in memory is in a folder"
        return self.folder / f"{key}.safetensors"

    def _readable(self, key: str) -> bool:
        if self.folder is None:
            return False
        try:
            with safe_open(self._file(key), "pt") as file:
                return CONTEXT in file.keys()
        except (OSError, SafetensorError):
            return False


def _storable(conditioning: Conditioning) -> bool:
    """Whether it is tensors and plain values, and nothing else."""
    context, extra = conditioning
    plain = (Tensor, bool, int, float, str, type(None))
    return isinstance(context, Tensor) and all(type(k) is str and isinstance(v, plain) for k, v in extra.items())


def _save(path: Path, conditioning: Conditioning):
    context, extra = conditioning
    tensors = {CONTEXT: context} | {EXTRA + name: v for name, v in extra.items() if isinstance(v, Tensor)}
    plain = {name: v for name, v in extra.items() if not isinstance(v, Tensor)}
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, path, {"plain": json.dumps(plain)})


def _load(path: Path) -> Conditioning:
    tensors, header = read_safetensors(path)
    extra = json.loads(header["plain"])
    context = tensors.pop(CONTEXT)
    return [context, extra | {name.removeprefix(EXTRA): tensor for name, tensor in tensors.items()}]
