"""Where the trained window of noise levels lies on a MODEL's own process."""

import math
from dataclasses import replace

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...srpo_core.algorithm.noise_levels import Window
from .fitting import check_model
from .presets import preset_of
from .sampling import Sampling

ROUNDING = 1e-6
MOST_SHOWN = 8
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


def sigmas_of(patcher: ModelPatcher, sampling: Sampling) -> Tensor:
    """(steps + 1,): the host's sigmas of the steps, from the noisiest to 0."""
    model_sampling = patcher.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(model_sampling, sampling.scheduler, sampling.steps)


def first_state(patcher: ModelPatcher, noise: Tensor, sigmas: Tensor) -> Tensor:
    """The model's state (B, C, ...) from which the host's samplers begin with this noise."""
    sampling = patcher.get_model_object("model_sampling")
    noisiest = math.isclose(float(sampling.sigma_max), float(sigmas[0]), rel_tol=1e-5)  # as it asks
    return sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), noisiest)


def visited(patcher: ModelPatcher, sampling: Sampling) -> list[float]:
    """The shares of noise at which the steps of a sampler begin, the noisiest first."""
    return check_model(patcher).share(sigmas_of(patcher, sampling).double()[:-1]).tolist()


def inside(window: Window, levels: list[float]) -> list[float]:
    """Those of the levels that lie in the window, with room for what rounding makes of its ends."""
    return [level for level in levels if window.sigma_min - ROUNDING <= level <= window.sigma_max + ROUNDING]


def shown_levels(levels: list[float]) -> str:
    """Noise levels in a sentence; of many the first and the last."""
    shown = [f"{level:.3f}" for level in levels]
    return ", ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:3], "...", shown[-1]])


def at_steps(patcher: ModelPatcher, window: Window, sampling: Sampling) -> Window:
    """The window with those levels alone at which the steps begin. Raises ValueError where there are none."""
    levels = visited(patcher, sampling)
    if not inside(window, levels):
        raise ValueError(
            f"SRPO Noise Levels trains at the rollouts' steps, and none of these {sampling.steps} lies in its window, "
            f"{window.sigma_max:.4f} to {window.sigma_min:.4f} of noise: they begin at {shown_levels(levels)}. Widen "
            "the window, or train at any level in it."
        )
    return replace(window, levels=tuple(inside(window, levels)))
