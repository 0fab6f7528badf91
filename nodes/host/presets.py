"""What is usual for a model, where somebody has published it: the one place of models' names."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ...srpo_core.algorithm.noise_levels import Window
from ...srpo_core.language import names

SOURCES = names(
    "as published for FLUX.1-dev with HPS v2.1",
    "as published for Qwen-Image, with the denoise branch alone",
    "untried for this model: the part of its schedule that is published for FLUX.1-dev",
)
WITH_HPS, DENOISE_ALONE, UNTRIED = SOURCES


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a model; None is what the host does without any.

    source: how a sentence goes on about the window. window: in shares of noise; None is the published part of the
    model's schedule. rollout_guidance: of the distilled kind.
    """

    source: str = UNTRIED
    window: Window | None = None
    rollout_guidance: float | None = None


USUAL = Preset()
# By the host's names for what it detects in a model's file.
PRESETS = {
    # arXiv 2509.06942 and its code: steps 5 to 25 of 50 at shift 3, rollouts with guidance 1.
    "Flux": Preset(source=WITH_HPS, window=Window(), rollout_guidance=1.0),
    # SRPO's code of 24 February 2026, SRPO_training_qwen.sh: steps 5 to 40 of 50 at shift 1.
    "QwenImage": Preset(source=DENOISE_ALONE, window=Window(sigma_max=0.9, sigma_min=0.2)),
    # SRPO's authors have announced the first, without settings so far; for the others nobody has published any.
    "Flux2": USUAL,
    "ZImage": USUAL,
    "FluxSchnell": USUAL,
}


def preset_of(patcher: ModelPatcher) -> Preset:
    return PRESETS.get(type(patcher.model.model_config).__name__, USUAL)
