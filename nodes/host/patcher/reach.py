"""What can be reached from a value: through containers, objects of any class, and what functions close over."""

import functools
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MOST = 20_000  # values: a whole server may hang on a function
PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType, BuiltinFunctionType, torch.dtype, torch.device)
CONTAINERS = (list, tuple, set, frozenset)


class TooMuch(Exception):
    """More than MOST values."""


def reached(values: Iterable, ends: tuple[type, ...] = ()) -> Iterator:
    """The tensors, the modules and the objects of the classes `ends`, into none of which it looks.

    Raises TooMuch where that doesn't come to an end.
    """
    todo = list(values)
    seen = {}
    while todo:
        value = todo.pop()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # which keeps it, and so its id
        if len(seen) > MOST:
            raise TooMuch
        if isinstance(value, (Tensor, nn.Module, *ends)):
            yield value
        else:
            todo.extend(_inside(value))


def _inside(value: Any) -> Iterator:
    if isinstance(value, CONTAINERS):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, FunctionType):
        yield from (value.__defaults__, value.__kwdefaults__)
        yield from (_content(cell) for cell in value.__closure__ or ())
    yield getattr(value, "__dict__", None)
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        yield from (getattr(value, name, None) for name in ((slots,) if isinstance(slots, str) else slots))


def _content(cell: CellType):
    """None of one that is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
