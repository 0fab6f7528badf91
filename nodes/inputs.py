"""Inputs that several nodes have, and the settings that are made of inputs."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import comfy.samplers
from comfy_api.latest import io

from ..srpo_core.algorithm.terms import Term
from ..srpo_core.report.sheet import printable
from .host.sampling import Sampling

SIDE = 720  # of pictures, as published
LEAST_SIDE = 16
OWN_GUIDANCE = -1.0  # that of the conditioning, or the model's own

Kind = TypeVar("Kind")


def settings_of(kind: type[Kind], inputs: Mapping[str, Any], /, **others: Any) -> Kind:
    """Settings of this kind, a dataclass: its fields are the inputs of the same names, but for `others`.

    Raises KeyError for a field that is neither.
    """
    named = {field.name: inputs[field.name] for field in fields(kind) if field.name not in others}
    return kind(**named, **others)


def weighing_inputs() -> list:
    return [
        io.Float.Input(
            "weight",
            default=Term.weight,
            min=0.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="How much this reward counts beside others. With 0 it only watches: it is logged and trains "
            "nothing.",
        ),
        io.String.Input(
            "name",
            default="",
            optional=True,
            tooltip="The name that tells its numbers from those of other rewards, as in words_gap/name.",
        ),
    ]


def reward_name(typed: str) -> str:
    """What a reward is called in metrics, pictures and messages: one line of what can be shown."""
    return printable(" ".join(typed.split()))


def size_inputs(width: str = "The width of the pictures.", height: str = "The height of the pictures.") -> list:
    """width, height: the tooltips."""
    return [side_input("width", width), side_input("height", height)]


def side_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=SIDE, min=LEAST_SIDE, max=4096, step=16, tooltip=tooltip)


def own_size_inputs(elsewhere: str) -> list:
    """A size that is, where it is 0, the one on the node that is named."""
    return [
        io.Int.Input(
            name,
            default=0,
            min=0,
            max=4096,
            step=16,
            tooltip=f"The {name} of these pictures. 0 is the {name} of {elsewhere}.",
        )
        for name in ("width", "height")
    ]


def check_own_side(name: str, side: int):
    """Raises ValueError for a side that is neither 0 nor one of a picture."""
    if 0 < side < LEAST_SIDE:
        raise ValueError(f"{name} is {side}: give at least {LEAST_SIDE} pixels, or 0.")


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
            tooltip="The scheduler that spaces the sampler's steps.",
        ),
        io.Int.Input(
            "steps", default=Sampling.steps, min=1, max=1000, tooltip="How many steps the sampler makes for a picture."
        ),
    ]


def guidance_inputs(guidance: str, cfg: str) -> list:
    """guidance, cfg: the tooltips, of which the rest is the same everywhere."""
    return [
        io.Float.Input(
            "guidance", default=OWN_GUIDANCE, min=OWN_GUIDANCE, max=100.0, step=0.1, round=False, tooltip=guidance
        ),
        cfg_input(cfg),
    ]


def cfg_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input("cfg", default=Sampling.cfg, min=0.0, max=100.0, step=0.1, round=False, tooltip=tooltip)


def negative_input() -> io.Conditioning.Input:
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="The prompt to guide away from where a cfg is not 1: an empty one, or what you don't want.",
    )


def asked_guidance(guidance: float) -> float | None:
    """That of a widget; None where it leaves the guidance to the conditioning and the model."""
    return None if guidance < 0 else guidance


def check_asked(reward: Any, objective: Any):
    """Raises ValueError for words without a reward that could be asked."""
    if objective is not None and reward is None:
        raise ValueError("An objective is connected, but no reward to ask: connect a reward too, or neither.")
