"""Choices that come through links: the host checks those alone that are made on the node itself."""

from collections.abc import Callable
from functools import wraps
from inspect import signature

from comfy_api.latest import io

SHOWN = 12  # of the options, in a sentence


def choices_checked(execute: Callable) -> Callable:
    """The `execute` of a node, which first raises ValueError for a value that is no option of its combo."""

    @wraps(execute)
    def checked(cls, *args, **inputs):
        check_choices(cls, signature(execute).bind(cls, *args, **inputs).arguments)
        return execute(cls, *args, **inputs)

    return checked


def check_choices(node: type[io.ComfyNode], values: dict):
    """Raises ValueError for a value, by its input's name, that is no option of its combo; others are passed over."""
    for combo in node.define_schema().inputs:
        if isinstance(combo, io.Combo.Input) and combo.id in values:
            check_choice(combo.id, values[combo.id], combo.options)


def check_choice(name: str, value, options: list[str]):
    """Raises ValueError unless the value is one of these."""
    if not isinstance(value, str) or value not in options:
        more = f" or {len(options) - SHOWN} others" if len(options) > SHOWN else ""
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(options[:SHOWN])}{more}.")
