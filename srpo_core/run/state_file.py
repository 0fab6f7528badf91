"""The one reader of what a run's state file holds: everything that is taken from it is checked first."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..algorithm.terms import Spread
from ..checks import is_number
from ..digest import digest
from ..files import parse_json, read_safetensors

VERSION = 1  # of what a state file holds
COUNTS = ("updates", "skipped", "skipped_in_a_row")  # saved in the state's header
WRITTEN = (*COUNTS, "version", "numbers", "spreads", "settings", "data", "tensors", "optimizer")  # in every header
TENSOR_GROUPS = (
    "adapter",
    "ema",
    "rollout",
    "optimizer",
    "optimizer_group",
)  # of tensors, each before a dot in their names
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.uint8, torch.int8, torch.int32, torch.int64)  # those that optimisers keep
ROLLOUT_DIMENSIONS = (3, 4)  # (C, H, W), and of a video (C, T, H, W)

State = tuple[dict[str, Tensor], dict[str, str]]  # tensors by name, header


class SpoiltState(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with the file."""


class NewerState(ValueError):
    """A file of a newer version of this software: a sentence."""


def names_digest(tensors: dict[str, Tensor]) -> str:
    """A digest of which tensors there are, for the header: none can be missing or added later."""
    return digest(sorted(tensors))


def read_state(file: Path) -> State:
    """The tensors and the header of a run's state, in memory of their own.

    They are whole and fit each other: counts, numbers, names, shapes, and every number is finite. Whether they fit a
    model and an optimiser is for the run to say. Raises SpoiltState and NewerState.
    """
    with _reading(file) as stored:
        _check_header(stored.metadata() or {})
        _check_names({name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()})
    with _reading(file):
        tensors, header = read_safetensors(file)
    _check_header(header)  # another process may have replaced the file between
    _check_names({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if names_digest(tensors) != header["tensors"]:
        raise SpoiltState("lacks tensors, or has some that no run put there")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or name.startswith("rollout.") and tensor.dtype not in FLOATS:
            raise SpoiltState(f"has {tensor.dtype} in {name}")
        if not is_finite(tensor):
            raise SpoiltState(f"has numbers that are not finite in {name}")
    return tensors, header


def updates_in(file: Path) -> int:
    """How many updates a state counts, by its header alone. Raises SpoiltState and NewerState."""
    with _reading(file) as stored:
        header = stored.metadata() or {}
    _check_header(header)
    return int(header["updates"])


@contextmanager
def _reading(file: Path) -> Iterator[safe_open]:
    """What goes wrong with the file inside is a SpoiltState."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise SpoiltState("is no file")
        with safe_open(file, "pt") as stored:
            yield stored
    except FileNotFoundError:
        raise SpoiltState("is not there, or is a link to what is not there") from None
    except (OSError, SafetensorError) as error:
        raise SpoiltState(f"can't be read as a state: {error}") from error


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def spreads_of(header: dict[str, str]) -> dict[str, Spread]:
    return {name: Spread(**spread) for name, spread in json.loads(header["spreads"]).items()}


def _check_header(header: dict[str, str]):
    if lacking := [name for name in WRITTEN if name not in header]:
        raise SpoiltState(f"is not the state of a run: its header has no {', '.join(lacking)}")
    version = _count(header, "version")
    if version > VERSION:
        raise NewerState(
            f"was written by a newer version of this pack (format {version}, this one knows {VERSION}): update the "
            "pack, or give this run a new name."
        )
    updates, skipped, in_a_row = (_count(header, name) for name in COUNTS)
    if version < 1 or not updates >= max(1, skipped) or skipped < in_a_row:
        raise SpoiltState(f"counts {updates} updates, {skipped} of them skipped, {in_a_row} in a row: that can't be")
    if not isinstance(_json(header, "settings"), dict):
        raise SpoiltState("has settings in its header that are none")
    spreads = _json(header, "spreads")
    if not isinstance(spreads, dict) or not all(_is_spread(spread) for spread in spreads.values()):
        raise SpoiltState("has spreads of rewards in its header that are none")
    _json(header, "numbers")


def _count(header: dict[str, str], name: str) -> int:
    text = header[name]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise SpoiltState(f'has "{text[:40]}" for its {name}')
    return int(text)


def _json(header: dict[str, str], name: str) -> Any:
    try:
        return parse_json(header[name])
    except ValueError as error:
        raise SpoiltState(f"has a header whose {name} {error}") from None


def _is_spread(spread: Any) -> bool:
    if not isinstance(spread, dict) or spread.keys() != asdict(Spread()).keys():
        return False
    numbers = all(is_number(value) and abs(value) < 1e300 for value in spread.values())  # no NaN is below it
    return numbers and type(spread["count"]) is int and spread["count"] >= 0 <= spread["squares"]


def _check_names(shapes: dict[str, tuple[int, ...]]):
    """Raises SpoiltState unless what belongs to a parameter names one, and has its shape where it must."""
    trained = {name.partition(".")[2]: shape for name, shape in shapes.items() if name.startswith("adapter.")}
    averaged = {name.partition(".")[2]: shape for name, shape in shapes.items() if name.startswith("ema.")}
    if not trained:
        raise SpoiltState("holds no adapter")
    if averaged and averaged != trained:
        raise SpoiltState("has a moving average of other parameters than its adapter's")
    for name, shape in shapes.items():
        kind = name.partition(".")[0]
        if kind not in TENSOR_GROUPS or kind == "optimizer" and name.split(".", 2)[-1] not in trained:
            raise SpoiltState(f"has a tensor {name[:80]!r}, which belongs to nothing in it")
        if kind == "rollout" and len(shape) not in ROLLOUT_DIMENSIONS:
            raise SpoiltState(f"has a rollout of shape {shape}")
