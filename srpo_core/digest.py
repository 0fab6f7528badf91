"""Digests of nested values, for names of what is kept on disk."""

import hashlib
from typing import Any

import torch
from torch import Tensor

WHOLE = 2**16  # values: a larger tensor is sampled
STRETCH = 64  # values in each of the three stretches of a sample


def digest(value: Any) -> str:
    """32 hex digits of None, numbers, strings, dtypes and tensors, and of lists, tuples and dicts of such.

    Equal values have equal digests, on every start; a list and a tuple count as equal, the order in a dict does not
    matter. A tensor counts with its shape, dtype and values: all of them up to WHOLE, of a larger one a STRETCH at its
    beginning, middle and end, so that gigabytes of weights take a moment. Raises TypeError for anything else.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return state.hexdigest()


def _feed(state: hashlib.blake2b, value: Any):
    if isinstance(value, Tensor):
        _feed(state, ["tensor", value.dtype, list(value.shape)])
        for stretch in _stretches(value.detach().reshape(-1)):
            state.update(stretch.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        state.update(f"list {len(value)};".encode())
        for item in value:
            _feed(state, item)
    elif isinstance(value, dict):
        state.update(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            _feed(state, key)
            _feed(state, value[key])
    elif value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.dtype):
        state.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"a {type(value).__name__} has no digest")


def _stretches(flat: Tensor) -> list[Tensor]:
    count = flat.numel()
    if count <= WHOLE:
        return [flat]
    return [flat[start : start + STRETCH] for start in (0, (count - STRETCH) // 2, count - STRETCH)]
