"""Model files as people have them: read without running anything in them, and no more than is asked for."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from copy import copy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPER = "module."  # what DataParallel puts in front of all names
SLICES, SLICE = 64, 64 * 1024  # of a fingerprint; bytes
AGAIN = "Download it again."


class Weights:
    """The tensors of a .safetensors file or of a PyTorch file (.pt, .pth, .bin, .ckpt).

    shapes: of every tensor, by name, without what training wrappers put in front of all names.
    Raises ValueError, a sentence, when the file is not what its name says, is cut short, or holds more than tensors;
    nothing in it is executed.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._tensors: dict[str, Tensor] = {}  # of a PyTorch file: mapped, not read
        if self.path.suffix == ".safetensors":
            stored = safetensors_shapes(self.path)
        elif self.path.suffix in PICKLES:
            self._tensors = pickled_tensors(self.path)
            stored = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        else:
            raise ValueError(
                f"{self.path.name} is no file of weights: a name that ends in .safetensors, {', '.join(PICKLES)} is."
            )
        wrapped = all(name.startswith(WRAPPER) for name in stored)
        self._stored = {name.removeprefix(WRAPPER) if wrapped else name: name for name in stored}
        self.shapes = {name: stored[long] for name, long in self._stored.items()}

    def within(self, prefix: str) -> "Weights":
        """The tensors whose names start with this, without it."""
        part = copy(self)
        part._stored = {name[len(prefix) :]: long for name, long in self._stored.items() if name.startswith(prefix)}
        part.shapes = {name: self.shapes[prefix + name] for name in part._stored}
        return part

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """These tensors in memory of their own. Raises ValueError for one with values that are not finite."""
        if self._tensors:
            return {name: self._own(name, self._tensors[self._stored[name]], dtype) for name in names}
        with safe_open(self.path, framework="pt") as file:
            return {name: self._own(name, file.get_tensor(self._stored[name]), dtype) for name in names}

    def number(self, name: str) -> float:
        """The value of a tensor with a single element."""
        return self.read([name], torch.float32)[name].item()

    def _own(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.path.name} is spoilt: {name} has values that are not finite. {AGAIN}")
        return tensor.to(dtype, copy=True)


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error}). {AGAIN}") from error


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file: of its `state_dict` when it has one, else of itself."""
    zipped = check_pytorch_file(path)
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path, error)) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path.name} can't be read ({type(error).__name__}: {error}). {AGAIN}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors by name: it is no file of weights.")
    return tensors


def check_pytorch_file(path: Path) -> bool:
    """Whether it is a zip, as PyTorch writes since 1.6. Raises ValueError for what is no PyTorch file."""
    with path.open("rb") as file:
        start = file.read(2)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"{path.name} is a TorchScript program, as OpenAI published CLIP. Use the same weights as "
                    "safetensors: model.safetensors of huggingface.co/openai/clip-vit-large-patch14 and its sisters."
                )
        return True
    if start == b"PK":
        raise ValueError(f"{path.name} is cut short. {AGAIN}")
    if start[:1] != b"\x80":
        raise ValueError(f"{path.name} is {'not a PyTorch file' if start else 'empty'}. {AGAIN}")
    return False


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """The sentence for a pickle that was not loaded."""
    found = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)|class ([\w.]+)", str(error))
    if not found:
        return f"{path.name} can't be read: it is damaged. {AGAIN}"
    return (
        f"{path.name} holds more than tensors ({next(filter(None, found.groups()))}), so that opening it could run "
        "any program, and it was not opened. Use a file of tensors alone: in a Python that you trust it with, "
        "safetensors.torch.save_file(model.state_dict(), 'new name.safetensors') makes one of a whole model."
    )


def fingerprint(path: Path) -> str:
    """Names a file's content, 32 hex digits, from its size and 64 evenly spaced slices of 64 kB."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for index in range(SLICES):
            file.seek(max(0, size - SLICE) * index // (SLICES - 1))
            digest.update(file.read(SLICE))
    return digest.hexdigest()
