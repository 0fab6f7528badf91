"""Inputs that several nodes have."""

import comfy.samplers
from comfy_api.latest import io

from ..srpo_core.algorithm.noise_levels import Window
from ..srpo_core.report.sheet import printable

WINDOW = Window()


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
