"""Where the trained window of noise levels lies on a MODEL's own process."""

import torch
from comfy.model_patcher import ModelPatcher

from ...srpo_core.algorithm.noise_levels import Window
from .fitting import check_model
from .presets import preset_of

PUBLISHED = Window(sigma_max=0.9, sigma_min=0.5)  # of the schedule: steps 5 to 25 of 50


def preset_window(patcher: ModelPatcher) -> Window:
    """The MODEL's own in shares of noise: the published one, or the same part of its schedule."""
    return preset_of(patcher).window or scheduled(patcher, PUBLISHED)


def scheduled(patcher: ModelPatcher, window: Window) -> Window:
    """Of a window in parts of the schedule that are still to come, in shares of noise.

    The schedule is the host's for the MODEL, with the shift that it has or that another node gave it.
    """
    process = check_model(patcher)
    sampling = patcher.get_model_object("model_sampling")

    def share(part: float) -> float:
        sigma = min(float(sampling.percent_to_sigma(1 - part)), process.sigma_max)
        return process.share(torch.tensor(sigma, dtype=torch.float64)).item()

    return Window(sigma_max=share(window.sigma_max), sigma_min=share(window.sigma_min))


def checked_window(patcher: ModelPatcher, window: Window) -> Window:
    """The same window. Raises ValueError where it is noisier than the MODEL's noisiest state."""
    most = check_model(patcher).largest_share
    if window.sigma_max > most:
        raise ValueError(
            f"sigma_max is {window.sigma_max:g}, and {type(patcher.model).__name__} knows no state with more than "
            f"{most:.4f} of noise: set it below that, or measure the window in parts of its schedule, on SRPO Noise "
            "Levels."
        )
    return window
