"""What is usual for a model, where somebody has published it: the one place of models' names."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ...srpo_core.algorithm.noise_levels import Window


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a model; None is what the host does without any.

    source: who published or tried them. window: in shares of noise; None is the published part of the model's
    schedule. rollout_guidance: of the distilled kind.
    """

    source: str = "untried"
    window: Window | None = None
    rollout_guidance: float | None = None


# By the host's names for what it detects in a model's file.
PRESETS = {
    "Flux": Preset(source="SRPO, arXiv 2509.06942, and its code for HPS", window=Window(), rollout_guidance=1.0),
}
USUAL = Preset()


def preset_of(patcher: ModelPatcher) -> Preset:
    return PRESETS.get(type(patcher.model.model_config).__name__, USUAL)
