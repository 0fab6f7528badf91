"""What a model file stores, told without running anything in it and before its numbers are read."""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import check_file

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
SAFETENSORS = (".safetensors", ".sft")
AGAIN = "Download it again."
TENSORS_ALONE = "https://github.com/comfyui-srpo/ComfyUI-SRPO/blob/main/docs/security.md#tensors-alone"
MOST_HEADER = 16 * 2**20  # bytes that a safetensors file may say of its tensors; bigG's are 0.1 MB
MOST_STEPS = 1_000_000  # of a pickle; a checkpoint of 2,000 tensors with its optimiser has 300,000
MOST_TENSORS = 50_000
DEEPEST = 6  # dictionaries in each other
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NOT_WEIGHTS = (  # how files begin that people take for a model, and what they are
    (b"GGUF", "a GGUF file: take the model as safetensors"),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file it stands for. Download it again, the file itself",
    ),
    (b"<", "not a file of weights, but text such as a web page. Download it again, the file itself"),
)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    shape: its sizes. dtype: how its numbers are stored, None for what is no plain float. odd: why it can't be read as
    weights, to be said after its name; "" if it can. nbytes: of all its values, as stored.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    nbytes: int
    odd: str = ""


def file_format(path: Path) -> str:
    """ "safetensors", "zip" (PyTorch's since 1.6) or "pickle" (PyTorch's before), told by how the file begins.

    Raises ValueError, a sentence, for anything else.
    """
    check_file(path)
    if path.suffix.lower() not in (*SAFETENSORS, *PICKLES):
        raise ValueError(
            f"{path.name} is no file of weights: a name that ends in {', '.join((*SAFETENSORS, *PICKLES))} is."
        )
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise ValueError(f"{path.name} is empty. {AGAIN}")
    for sign, what in NOT_WEIGHTS:
        if start.lstrip().startswith(sign):
            raise ValueError(f"{path.name} is {what}.")
    if start.startswith((b"PK", b"\x80")) and start[8:9] != b"{" and path.suffix.lower() in SAFETENSORS:
        raise ValueError(f"{path.name} is a PyTorch file under a name of safetensors: rename it to {path.stem}.pt.")
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path.name} is cut short. {AGAIN}")
        return "zip"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"\x80"):
        return "pickle"
    expected = "a whole safetensors file" if path.suffix.lower() in SAFETENSORS else "a PyTorch file"
    raise ValueError(f"{path.name} is not {expected}: it is cut short, damaged or something else. {AGAIN}")


def in_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises ValueError, a sentence, for a file that is not whole."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > path.stat().st_size - 8:
        raise ValueError(f"{path.name} is not a whole safetensors file: it ends before its tensors begin. {AGAIN}")
    if header > MOST_HEADER:
        raise ValueError(f"{path.name} says {header / 1e6:.0f} MB about its tensors: it is no reward model.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())
            return {name: of_slice(part.get_dtype(), tuple(part.get_shape())) for name, part in slices}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error}). {AGAIN}") from error


def of_slice(kind: str, shape: tuple[int, ...]) -> Stored:
    dtype = FLOATS.get(kind)
    size = torch.Size(shape).numel() * dtype.itemsize if dtype else 0
    return Stored(shape, dtype, size, "" if dtype else f"is stored as {kind}")


def of_tensor(tensor: Tensor) -> Stored:
    """What a tensor is as torch.load gives it; none of its values is read."""
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_nested:
        return Stored(shape, None, 0, f"is stored as a sparse or nested tensor ({tensor.layout})")
    if tensor.is_meta:
        return Stored(shape, None, 0, "is stored without its values, as a tensor on the meta device")
    if tensor.is_quantized or tensor.dtype not in FLOATS.values():
        return Stored(shape, None, 0, f"is stored as {str(tensor.dtype).removeprefix('torch.')}")
    nbytes = tensor.numel() * tensor.element_size()
    kept = tensor.untyped_storage().nbytes()
    odd = f"is said to have {nbytes} bytes, of which the file has {kept}" if nbytes > kept else ""
    return Stored(shape, tensor.dtype, nbytes, odd)


def pickled_tensors(path: Path, form: str) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name; those in dictionaries inside it begin with the dictionary's name.

    form: as file_format tells. Of a zip the tensors are mapped, not read. Raises ValueError, a sentence, when it holds
    more than tensors, would grow out of proportion, or can't be read.
    """
    try:
        (check_zip if form == "zip" else check_legacy)(path)
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=form == "zip")
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path, str(error))) from error
    except Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged pickle can fail in any way
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path.name} can't be read: it is damaged or no model ({what}). {AGAIN}") from error
    tensors = dict(flat(path, content)) if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors by name: it is no file of weights.")
    return tensors


class Refused(Exception):
    """A sentence about a file that was not opened."""


def flat(path: Path, content: dict, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Tensor]]:
    """Tensors with their names, which are joined by dots; keys that are no text name no weights."""
    if depth > DEEPEST or len(content) > MOST_TENSORS:
        raise ValueError(f"{path.name} holds too many dictionaries or tensors in each other: it is no reward model.")
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, dict):
            yield from flat(path, value, f"{prefix}{name}.", depth + 1)


def check_zip(path: Path):
    """Raises Refused for what PyTorch's own zip never is, and would take memory that the file's size does not tell."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise Refused(
                f"{path.name} is a TorchScript program, as OpenAI published CLIP. Use the same weights as "
                "safetensors: model.safetensors of huggingface.co/openai/clip-vit-large-patch14 and its sisters."
            )
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise Refused(
                f"{path.name} is packed in a way in which PyTorch stores no model, and was not opened. If it is a "
                "packed download, unpack it; else take it from its authors again."
            )
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise Refused(f"{path.name} is a zip file without a model of PyTorch. If it is packed, unpack it.")
        for entry in pickles:
            with archive.open(entry) as file:
                check_pickle(path, file)


def check_legacy(path: Path):
    """Check as check_zip does the five pickles with which the older format begins; the fourth is the content."""
    with path.open("rb") as file:
        for _ in range(5):
            check_pickle(path, file)


def check_pickle(path: Path, file: IO[bytes]):
    """Raises Refused for a pickle of too many steps, and for one that asks for memory by a number."""
    for number, (step, told, _) in enumerate(pickletools.genops(file)):
        if number > MOST_STEPS:
            raise Refused(f"{path.name} holds far more than the tensors of a reward model, and was not opened.")
        if step.name == "GLOBAL" and str(told).endswith("bytearray"):  # torch.load lets bytearray(a large number) pass
            raise Refused(refusal(path, f"GLOBAL {str(told).replace(' ', '.')}"))


def refusal(path: Path, error: str) -> str:
    """The sentence for a pickle that was not loaded."""
    found = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)|class ([\w.]+)", error)
    if not found:
        return f"{path.name} can't be read: it is damaged. {AGAIN}"
    return (
        f"{path.name} holds more than tensors ({next(filter(None, found.groups()))}), so that opening it could run "
        f"any program, and it was not opened. Use a file of tensors alone; how who trusts it makes one: {TENSORS_ALONE}"
    )
