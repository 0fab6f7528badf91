"""What comes in through links: the host checks those values alone that are set on the node itself."""

import functools
import re
from collections.abc import Callable
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from comfy_api.latest import io

from ..srpo_core.checks import check_integer, check_number, shown

PACK = __name__.removesuffix(".nodes.checked")
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "server")
SHOWN = 12  # of the options, in a sentence


def checked(execute: Callable) -> Callable:
    """For a node's `execute`, called by the names of inputs: it refuses, in a sentence, what the schema does not allow.

    That is a number that is none or not in its range (the host takes NaN for one), and a value that is no option of
    its combo, and a text that is none. Numbers of other libraries become Python's own. Optional inputs that are not
    given come as the schema's default, which is None for links. What the host lacks is said as by `host_checked`.
    """
    execute = host_checked(execute)

    @functools.wraps(execute)
    def execute_checked(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        return execute(cls, **_checked_values(cls.define_schema().inputs, inputs))

    return execute_checked


def host_checked(execute: Callable) -> Callable:
    """For the `execute` of a node that checks its values itself: what this ComfyUI lacks is said in a sentence.

    Errors of the pack's own types are raised as the built-in type below them: before its sentence a front end shows the
    full name of an error's type, and a type of ours would stand there with the path of the pack.
    """

    @functools.wraps(execute)
    def execute_here(*values: Any, **inputs: Any) -> io.NodeOutput:
        try:
            return execute(*values, **inputs)
        except (ImportError, AttributeError) as error:
            if missing := _missing_in_host(error):
                raise RuntimeError(
                    f"This ComfyUI ({_version()}) has no {missing}, which this node needs: take the newest "
                    "ComfyUI-SRPO, or a ComfyUI that it was made for, such as 0.33."
                ) from error
            raise
        except Exception as error:
            if type(error).__module__.startswith(f"{PACK}."):
                raise _built_in(type(error))(str(error)) from error
            raise

    return execute_here


def _built_in(kind: type[Exception]) -> type[Exception]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _missing_in_host(error: ImportError | AttributeError) -> str:
    """The full name of what the host was expected to have; empty where the error is about something else."""
    if isinstance(error, AttributeError):
        place = error.obj.__name__ if isinstance(error.obj, ModuleType) else ""
        name = error.name
    else:
        place = error.name or ""
        found = re.search(r"cannot import name '(\w+)'", str(error))
        name = found and found[1]
    if place.partition(".")[0] not in HOST:
        return ""
    return f"{place}.{name}" if name else place


def _version() -> str:
    from comfyui_version import __version__

    return __version__


def answer_of(check: Callable, *values: Any) -> bool | str:
    """For a node's `validate_inputs`: True, or the sentence of the ValueError with which `check` refuses the values."""
    try:
        check(*values)
    except ValueError as error:
        return str(error)
    return True


def _checked_values(declared_inputs: list[io.Input], values: dict[str, Any]) -> dict[str, Any]:
    """The values, checked, with the defaults of those that are not given.

    Raises ValueError for what belongs to another choice of a dynamic combo: the host hands it on by its whole name.
    """
    values = dict(values)
    for name in values:
        combo, dot, _ = name.partition(".")
        if dot and any(declared.id == combo for declared in declared_inputs):
            raise ValueError(
                f"{name} is given, but belongs to another choice of {combo}: choose that one, or remove it."
            )
    for declared in declared_inputs:
        if isinstance(declared, io.DynamicCombo.Input):
            values[declared.id] = _checked_choice(declared, values.get(declared.id))
        elif declared.id in values:
            values[declared.id] = _checked_value(declared, values[declared.id])
        elif declared.optional:
            values[declared.id] = getattr(declared, "default", None)
    return values


def _checked_choice(declared: io.DynamicCombo.Input, value: Any) -> dict[str, Any]:
    """What is chosen, by the combo's own name, and the inputs that belong to it, by theirs."""
    options = {option.key: option for option in declared.options}
    if not isinstance(value, dict):  # the host leaves out what is no option, and links
        listed = ", ".join(f'"{key}"' for key in options)
        raise ValueError(f"{declared.id} is missing, linked or no option: choose on the node itself, one of {listed}.")
    check_choice(declared.id, value.get(declared.id), list(options))
    return _checked_values(options[value[declared.id]].inputs, value)


def _checked_value(declared: io.Input, value: Any) -> Any:
    if isinstance(declared, (io.Int.Input, io.Float.Input)):
        return _checked_number(declared, value)
    if isinstance(declared, io.Combo.Input):
        check_choice(declared.id, value, declared.options)
    if isinstance(declared, io.String.Input):
        check_text(declared.id, value)
    return value


def _checked_number(declared: io.Int.Input | io.Float.Input, value: Any) -> int | float:
    if isinstance(declared, io.Int.Input):
        value = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
        check_integer(declared.id, value, declared.min, declared.max)
        return value
    value = value if isinstance(value, (bool, int)) or not isinstance(value, Real) else float(value)
    check_number(declared.id, value, declared.min, declared.max)
    return float(value)


def check_choice(name: str, value: Any, options: list[str]):
    """Raises ValueError unless the value is one of these."""
    if not isinstance(value, str) or value not in options:
        more = f" or {len(options) - SHOWN} others" if len(options) > SHOWN else ""
        there = f"choose one of {', '.join(options[:SHOWN])}{more}" if options else "there is nothing to choose yet"
        raise ValueError(f"{name} is {shown(value)}: {there}.")


def check_text(name: str, value: Any):
    """Raises ValueError unless the value is a text that can be written to a file."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}: give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half of a character, {value[error.start]!r} at place {error.start + 1}: take it out."
        ) from None
