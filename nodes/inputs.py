"""Inputs that several nodes have, and what every number that comes in must be."""

import functools
import inspect
from collections.abc import Callable
from numbers import Integral, Real

import comfy.samplers
from comfy_api.latest import io

from ..srpo_core.checks import check_number, check_whole
from ..srpo_core.schedule import Window
from ..srpo_core.table_picture import printable

WINDOW = Window()


def checked(execute: Callable) -> Callable:
    """For a node's `execute`: it refuses, in a sentence, numbers that are none or not in the range of the schema.

    The host checks typed values alone, and takes NaN for a number. Numbers of other libraries become Python's own.
    """
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def execute_checked(cls, *args, **kwargs):
        given = signature.bind(cls, *args, **kwargs)
        for declared in cls.define_schema().inputs:
            if isinstance(declared, (io.Int.Input, io.Float.Input)) and declared.id in given.arguments:
                given.arguments[declared.id] = _checked_number(declared, given.arguments[declared.id])
        return execute(*given.args, **given.kwargs)

    return execute_checked


def _checked_number(declared, value) -> int | float:
    if isinstance(declared, io.Int.Input):
        value = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
        check_whole(declared.id, value, declared.min, declared.max)
        return value
    value = value if isinstance(value, (bool, int)) or not isinstance(value, Real) else float(value)
    check_number(declared.id, value, declared.min, declared.max)
    return float(value)


def window_inputs() -> list:
    return [
        io.Float.Input(
            "sigma_max",
            default=round(WINDOW.sigma_max, 4),
            min=0.0,
            max=1.0,
            step=0.0001,
            round=False,
            tooltip="The noisiest level that is trained, below 1. High noise decides layout and look.",
        ),
        io.Float.Input(
            "sigma_min",
            default=WINDOW.sigma_min,
            min=0.0,
            max=1.0,
            step=0.0001,
            round=False,
            tooltip="The least noisy level that is trained. Low noise decides colour and detail, and is easily hacked.",
        ),
    ]


def weighing_inputs() -> list:
    return [
        io.Float.Input(
            "weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="How much this reward counts beside others. 0 watches: it is logged and trains nothing.",
        ),
        io.String.Input(
            "name",
            default="",
            optional=True,
            tooltip="Tells its numbers from those of other rewards, as in words_gap/name.",
        ),
    ]


def reward_name(typed: str) -> str:
    """What a reward is called in metrics, pictures and messages: one line of what can be shown."""
    return printable(" ".join(typed.split()))


def check_window(sigma_max=None, sigma_min=None):
    """For `validate_inputs`: True, or the sentence that says what is wrong with the window."""
    if sigma_max is not None and sigma_min is not None:
        try:
            Window(sigma_max, sigma_min)
        except ValueError as error:
            return str(error)
    return True


def size_inputs() -> list:
    return [
        io.Int.Input("width", default=720, min=16, max=4096, step=16, tooltip="Width of the pictures."),
        io.Int.Input("height", default=720, min=16, max=4096, step=16, tooltip="Height of the pictures."),
    ]


def sampler_inputs() -> list:
    return [
        io.Combo.Input(
            "sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler", tooltip="Samples the pictures."
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="simple", tooltip="Of the sampler."
        ),
        io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Sampler steps of a picture."),
    ]


def limit_input(name: str, tooltip: str):
    tooltip = f"{tooltip} 0: no limit."
    return io.Float.Input(name, default=0.0, min=0.0, max=100.0, step=0.01, optional=True, tooltip=tooltip)


def guard_input(name: str, tooltip: str):
    tooltip = f"{tooltip} One more forward for each trained step. 0: none."
    return io.Float.Input(name, default=0.0, min=0.0, max=1000.0, step=0.01, optional=True, tooltip=tooltip)
