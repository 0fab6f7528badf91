"""Inputs that several nodes have, and the settings that are made of inputs."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import comfy.samplers
from comfy_api.latest import io

from ..srpo_core.algorithm.guard import Guard
from ..srpo_core.algorithm.noise_levels import Window
from ..srpo_core.algorithm.terms import Term
from ..srpo_core.report.sheet import printable
from ..srpo_core.run.watch import Limits
from .host.sampling import Sampling

WARN = "warn"  # at a limit
STOP = "stop"
WINDOW = Window()
SIDE = 720  # of pictures, as published
GUIDANCE = 3.5  # what FLUX is usually sampled with

Kind = TypeVar("Kind")


def settings_of(kind: type[Kind], inputs: Mapping[str, Any], /, **others: Any) -> Kind:
    """Settings of this kind, a dataclass: its fields are the inputs of the same names, but for `others`.

    Raises KeyError for a field that is neither.
    """
    named = {field.name: inputs[field.name] for field in fields(kind) if field.name not in others}
    return kind(**named, **others)


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
            default=Term.weight,
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


def check_window(sigma_max: float | None = None, sigma_min: float | None = None):
    """Raises ValueError for a window that can't be, if both ends are known."""
    if sigma_max is not None and sigma_min is not None:
        Window(sigma_max=sigma_max, sigma_min=sigma_min)


def size_inputs(width: str = "Width of the pictures.", height: str = "Height of the pictures.") -> list:
    """width, height: the tooltips."""
    return [side_input("width", width), side_input("height", height)]


def side_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=SIDE, min=16, max=4096, step=16, tooltip=tooltip)


def sampler_inputs() -> list:
    return [
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.SAMPLER_NAMES,
            default=Sampling.sampler_name,
            tooltip="The sampler of the pictures.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.SCHEDULER_NAMES,
            default=Sampling.scheduler,
            tooltip="The scheduler of the sampler.",
        ),
        io.Int.Input("steps", default=Sampling.steps, min=1, max=1000, tooltip="Sampler steps of a picture."),
    ]


def guidance_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def limit_inputs() -> list:
    return [
        limit_input(
            "words_gap_limit",
            Limits.words_gap,
            "The words-gap has risen by this much since the run began: far enough.",
        ),
        limit_input(
            "saturation_limit",
            Limits.saturation,
            "Saturation has risen by this share, 0.1 being 10 %: a sign of hacking.",
        ),
        limit_input(
            "watching_limit",
            Limits.watching,
            "A reward that only watches has fallen by so many of its standard deviations: a sign of hacking.",
        ),
        io.Combo.Input(
            "at_limit",
            options=[WARN, STOP],
            default=WARN,
            optional=True,
            tooltip="What to do at one of the limits: say so, or end the training there.",
        ),
    ]


def limit_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    tooltip = f"{tooltip} 0: no limit."
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.01, optional=True, tooltip=tooltip)


def guard_inputs() -> list:
    return [
        guard_input(
            "norm_guard",
            Guard.norm_weight,
            "NormGuard: a penalty for velocities of a larger norm than the frozen model's.",
        ),
        guard_input(
            "frozen_pull",
            Guard.distance_weight,
            "Pulls the model back: a penalty for the squared distance to the frozen velocity.",
        ),
        limit_input(
            "velocity_limit",
            Limits.velocity,
            "The velocity's norm over the frozen model's has risen by this share, 0.1 being 10 %: pictures "
            "soon get worse.",
        ),
    ]


def guard_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    tooltip = f"{tooltip} One more forward for each trained step. 0: none."
    return io.Float.Input(name, default=default, min=0.0, max=1000.0, step=0.01, optional=True, tooltip=tooltip)
