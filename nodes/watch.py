"""SRPO_Watch: what ends a training, or is said of it, before pictures are spoilt."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

from ..srpo_core.algorithm.guard import Guard
from ..srpo_core.run.watch import Limits
from .checked import checked
from .sockets import CATEGORY, WatchType

WARN = "warn"
STOP = "stop"
SATURATION = 0.2  # a fifth more colour than the run began with: beyond it, pictures are visibly gaudy


@dataclass(frozen=True, kw_only=True)
class Watch:
    """When a run has gone too far, what happens then (WARN or STOP), and what holds it near the frozen model."""

    limits: Limits = Limits(saturation=SATURATION)
    at_limit: str = WARN
    guard: Guard = Guard()


def limit_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.001, tooltip=f"{tooltip} 0 sets no limit.")


def guard_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    tooltip = f"{tooltip} It costs one more forward for each trained step; 0 is none."
    return io.Float.Input(name, default=default, min=0.0, max=1000.0, step=0.001, tooltip=tooltip, advanced=True)


class WatchNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Watch",
            display_name="SRPO Watch",
            category=CATEGORY,
            description="How far training may go, and what happens there. Without this node SRPO Train warns of "
            "saturation alone.",
            search_aliases=["reward hacking", "early stopping", "norm guard", "oversaturated", "srpo"],
            inputs=[
                io.Combo.Input(
                    "at_limit",
                    options=[WARN, STOP],
                    default=WARN,
                    tooltip="What to do at one of the limits: say so, or end the training there.",
                ),
                limit_input(
                    "saturation_limit",
                    SATURATION,
                    "The share by which saturation may rise from the run's beginning, 0.1 being 10 %. A rise is a sign "
                    "of hacking.",
                ),
                limit_input(
                    "words_gap_limit",
                    Limits.words_gap,
                    "How much the words-gap may rise from the run's beginning: then training went far enough.",
                ),
                limit_input(
                    "watching_limit",
                    Limits.watching,
                    "How many of its standard deviations a reward that only watches may fall. A fall is a sign of "
                    "hacking.",
                ),
                limit_input(
                    "velocity_limit",
                    Limits.velocity,
                    "The share by which the velocity's norm may rise over the frozen model's, 0.1 being 10 %. Beyond "
                    "it pictures soon get worse.",
                ),
                guard_input(
                    "norm_guard",
                    Guard.norm_weight,
                    "The weight of NormGuard, a penalty for velocities of a larger norm than the frozen model's.",
                ),
                guard_input(
                    "distance_guard",
                    Guard.distance_weight,
                    "The weight of a penalty for the squared distance to the frozen velocity, which holds the model "
                    "back.",
                ),
            ],
            outputs=[WatchType.Output(display_name="watch", tooltip="These limits, for SRPO Train.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        at_limit: str,
        saturation_limit: float,
        words_gap_limit: float,
        watching_limit: float,
        velocity_limit: float,
        norm_guard: float,
        distance_guard: float,
    ) -> io.NodeOutput:
        limits = Limits(
            words_gap=words_gap_limit, saturation=saturation_limit, watching=watching_limit, velocity=velocity_limit
        )
        guard = Guard(norm_weight=norm_guard, distance_weight=distance_guard)
        return io.NodeOutput(Watch(limits=limits, at_limit=at_limit, guard=guard))
