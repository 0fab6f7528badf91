"""Model files as people have them: read without running anything in them, and no more than is asked for."""

import hashlib
from collections.abc import Collection, Iterable
from copy import copy
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .stored import Stored, file_format, in_safetensors, of_tensor, pickled_tensors

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # parts of names, anywhere
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SLICES = 64  # of a fingerprint
SLICE = 64 * 1024  # bytes of each


class Weights:
    """The tensors of a .safetensors file or of a PyTorch file (.pt, .pth, .bin, .ckpt).

    shapes: of every tensor, by name, without what wrappers of training (DataParallel, torch.compile, FSDP) put into
    all names. A tensor in a dictionary inside the file has that dictionary's name and a dot before its own.
    prefix: what stands before the names in the file, see `within`.
    Raises ValueError, a sentence, when the file is not what its name says, is cut short, or holds more than tensors;
    nothing in it is executed, and no values are read.
    """

    prefix = ""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._tensors: dict[str, Tensor] = {}  # of a PyTorch file: mapped, not read
        form = file_format(self.path)
        if form == "safetensors":
            stored = in_safetensors(self.path)
        else:
            self._tensors = pickled_tensors(self.path, form)
            stored = {name: of_tensor(tensor) for name, tensor in self._tensors.items()}
        self._long = unwrapped(self.path, stored)
        self.stored: dict[str, Stored] = {name: stored[long] for name, long in self._long.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.stored.items()}

    @property
    def where(self) -> str:
        """Under which prefix names are looked for, to be said after them; "" without one."""
        return f' (looked for under "{self.prefix}")' if self.prefix else ""

    def within(self, prefix: str) -> "Weights":
        """The tensors whose names start with this, without it."""
        part = copy(self)
        part.prefix = self.prefix + prefix
        part._long = {name[len(prefix) :]: long for name, long in self._long.items() if name.startswith(prefix)}
        part.stored = {name: self.stored[prefix + name] for name in part._long}
        return part

    def check(self, names: Collection[str]):
        """Raises ValueError when these can't be read as weights, or are more than the file has bytes for."""
        for name in names:
            if odd := self.stored[name].odd:
                raise ValueError(
                    f"{self.path.name} can't be used: {name} {odd}. Use a file with plain float tensors, in fp32, fp16 "
                    "or bf16."
                )
        self._check_float8(names)
        size = sum(self.stored[name].nbytes for name in names)
        room = self.path.stat().st_size
        if size > room:
            raise ValueError(
                f"{self.path.name} can't be used: its tensors have {size} bytes and the file {room}, as the same "
                "values stand for several. Save it anew with a copy of each tensor."
            )

    def _check_float8(self, names: Collection[str]):
        """fp8 is read as it is; but with scales beside it the numbers mean something else."""
        found = {str(d).removeprefix("torch.") for n in names if (d := self.stored[n].dtype) in FLOAT8}
        scales = [name for name in self.stored if is_scale(name)]
        if found and scales:
            raise ValueError(
                f"{self.path.name} is stored as {found.pop()} with scales ({scales[0]}), which are not known here. Use "
                "the same model in fp32, fp16 or bf16."
            )

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """These tensors in memory of their own. Raises ValueError as `check`, and for values that are not finite."""
        names = list(names)
        self.check(names)
        if self._tensors:
            return {name: self._own(name, self._tensors[self._long[name]], dtype) for name in names}
        with safe_open(self.path, framework="pt") as file:
            return {name: self._own(name, file.get_tensor(self._long[name]), dtype) for name in names}

    def number(self, name: str) -> float:
        """The value of a tensor with a single element. Raises ValueError for one with more."""
        if self.stored[name].shape not in ((), (1,)):
            raise ValueError(f"{self.path.name} is not of a known model: {name} is {self.shapes[name]}, not a number.")
        return self.read([name], torch.float32)[name].item()

    def _own(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        own = tensor.detach().to(dtype, copy=True)
        if not torch.isfinite(own).all():
            raise ValueError(
                f"{self.path.name} is spoilt: {name} has values that are not finite. Take another copy, or, of a model "
                "that you trained, an earlier one."
            )
        return own.contiguous()


def unwrapped(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The names as they are in the file, by the names without wrappers. Raises ValueError where two become one."""
    found: dict[str, str] = {}
    for long in names:
        name = ".".join(part for part in long.split(".") if part not in WRAPPERS)
        if name in found:
            raise ValueError(f"{path.name} has two tensors for {name}: {found[name]} and {long}. Save one model alone.")
        found[name] = long
    return found


def is_scale(name: str) -> bool:
    """Whether a name speaks of quantised numbers; CLIP's own logit_scale does not."""
    return any(("scale" in part and part != "logit_scale") or "quant" in part for part in name.split("."))


def fingerprint(path: Path) -> str:
    """Names a file's content, 32 hex digits, from its size and 64 evenly spaced slices of 64 kB."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for index in range(SLICES):
            file.seek(max(0, size - SLICE) * index // (SLICES - 1))
            digest.update(file.read(SLICE))
    return digest.hexdigest()
