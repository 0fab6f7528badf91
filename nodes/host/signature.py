"""What the way back through a MODEL of the host may depend on, to be compared."""

from collections.abc import Hashable
from typing import Any

CARRIED = (
    "patches",  # not their uuid, which is another after each sampling with hooks
    "object_patches",
    "weight_wrapper_patches",
    "injections",
    "wrappers",
    "callbacks",
    "additional_models",
    "attachments",
    "model_options",
)


def carried_by(patcher) -> Hashable:
    """The model, and everything that nodes put on the MODEL; the same until one of them changes it."""
    return id(patcher.model), tuple(_identity(getattr(patcher, name, None)) for name in CARRIED)


def kind_of(cond: list) -> Hashable:
    """What kinds of things a CONDITIONING holds: its entries' names and types, and their hooks and control models."""
    return tuple(tuple((name, _kind(value)) for name, value in sorted(with_.items())) for _, with_ in cond)


def _identity(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((str(key), _identity(held)) for key, held in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_identity(held) for held in value)
    return value if isinstance(value, (str, int, float, type(None))) else (type(value).__qualname__, id(value))


def _kind(value: Any) -> Hashable:
    hooks = tuple(_kind(hook) for hook in getattr(value, "hooks", ()))
    before = getattr(value, "previous_controlnet", None)
    return type(value).__qualname__, hooks, None if before is None else _kind(before)
