"""SRPO_NoiseLevels: which noise levels are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..srpo_core.algorithm.noise_levels import Window
from ..srpo_core.language import called, say
from ..srpo_core.run.draws import Batching
from .checked import answer_of, checked
from .host.sampling import Sampling
from .sockets import CATEGORY, NoiseLevelsType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DEFAULT = Window()
SHARE = "noise share"
SCHEDULE = "schedule"
ANY_LEVEL = "any level"
ROLLOUT_STEPS = "rollout steps"


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """The trained window, and whether the prompts of an update share one noise.

    window: in shares of noise, or in parts of the MODEL's own schedule; None is the preset of the MODEL. at_steps:
    train in it only where a step of the rollouts begins.
    """

    window: Window | None = None
    of_schedule: bool = False
    at_steps: bool = False
    shared_noise: bool = Batching.shared_noise

    def window_of(self, model: ModelPatcher) -> Window:
        """In shares of noise. Raises ValueError for what is noisier than the MODEL's noisiest state."""
        from .host.windows import checked_window, preset_window, scheduled

        if self.window is None:
            return preset_window(model)
        return scheduled(model, self.window) if self.of_schedule else checked_window(model, self.window)

    def trained_window(self, model: ModelPatcher, rollouts: Sampling) -> Window:
        """The same, with the levels that are trained. Raises ValueError, too, where no step of the rollouts is in."""
        from .host.windows import at_steps

        window = self.window_of(model)
        return at_steps(model, window, rollouts) if self.at_steps else window

    def about(self, model: ModelPatcher, window: Window) -> str:
        """What a run is told of its window, the `trained_window`: where it lies, and who says so."""
        from .host.presets import SOURCES, preset_of
        from .host.windows import shown_levels

        source = called(preset_of(model).source, SOURCES) if self.window is None else say("as set on SRPO Noise Levels")
        if window.levels:
            return say(
                "Trained at {levels} of noise, where steps of the rollouts begin, in the window from {high:.3f} to "
                "{low:.3f}, {source}.",
                levels=shown_levels(list(window.levels)),
                high=window.sigma_max,
                low=window.sigma_min,
                source=source,
            )
        return say(
            "Trained at {high:.3f} to {low:.3f} of noise, {source}.",
            high=window.sigma_max,
            low=window.sigma_min,
            source=source,
        )


class NoiseLevelsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_NoiseLevels",
            display_name="SRPO Noise Levels",
            category=CATEGORY,
            description="Which noise levels are trained. High noise decides layout and look, low noise colour and "
            "detail. Without this node they are the published ones for FLUX, and for other models the same part of "
            "their schedule.",
            search_aliases=["sigmas", "timesteps", "noise window", "srpo"],
            inputs=[
                io.Float.Input(
                    "sigma_max",
                    default=round(DEFAULT.sigma_max, 4),
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="The noisiest level that is trained, below 1. High noise decides layout and look.",
                ),
                io.Float.Input(
                    "sigma_min",
                    default=DEFAULT.sigma_min,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="The least noisy level that is trained. Low noise decides colour and detail, and is easily "
                    "hacked.",
                ),
                io.Combo.Input(
                    "measured_in",
                    options=[SHARE, SCHEDULE],
                    default=SHARE,
                    tooltip="What both numbers are. noise share: how much of a state is noise, which means the same to "
                    "every model; of FLUX it is the sigma. schedule: how much of the model's own schedule is still to "
                    "come, with the shift that it carries; 0.9 to 0.5 is steps 5 to 25 of 50.",
                ),
                io.Boolean.Input(
                    "shared_noise",
                    default=Batching.shared_noise,
                    tooltip="Whether all prompts of an update begin from one noise, as published, instead of each from "
                    "its own. Their noise levels still differ. It is for SRPO Train alone.",
                ),
                io.Combo.Input(
                    "trained_at",
                    options=[ANY_LEVEL, ROLLOUT_STEPS],
                    default=ANY_LEVEL,
                    tooltip="Which levels in the window are trained. any level: all of them, as published. rollout "
                    "steps: only those where a step of SRPO Rollouts begins, for models that were distilled to few "
                    "steps and are asked nowhere else.",
                ),
            ],
            outputs=[
                NoiseLevelsType.Output(
                    display_name="levels", tooltip="The window, for SRPO Train or Noise-Prior Inject."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, sigma_max: float | None = None, sigma_min: float | None = None) -> bool | str:
        return answer_of(check_window, sigma_max, sigma_min)

    @classmethod
    @checked
    def execute(
        cls, sigma_max: float, sigma_min: float, measured_in: str, shared_noise: bool, trained_at: str
    ) -> io.NodeOutput:
        levels = NoiseLevels(
            window=Window(sigma_max=sigma_max, sigma_min=sigma_min),
            of_schedule=measured_in == SCHEDULE,
            at_steps=trained_at == ROLLOUT_STEPS,
            shared_noise=shared_noise,
        )
        return io.NodeOutput(levels)


def check_window(sigma_max: float | None = None, sigma_min: float | None = None):
    """Raises ValueError for a window that can't be, if both ends are known."""
    if sigma_max is not None and sigma_min is not None:
        Window(sigma_max=sigma_max, sigma_min=sigma_min)
