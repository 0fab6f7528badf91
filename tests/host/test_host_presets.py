"""Presets by model: what they set, and what a run is told of them."""

import families
import pytest
from families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def test_the_host_has_each_model(pack):
    import comfy.supported_models

    presets = pack("nodes.host.presets").PRESETS
    known = {model.__name__ for model in comfy.supported_models.models}
    assert {"Flux", "QwenImage", "Flux2", "ZImage"} <= presets.keys() <= known


@pytest.mark.parametrize(
    "name, window, source",
    [
        ("FLUX.1 dev", (0.964, 0.750), "as published for FLUX.1-dev with HPS"),
        ("Qwen-Image", (0.900, 0.200), "as published for Qwen-Image, with the denoise branch alone"),
        ("FLUX.2 dev", (0.985, 0.883), "untried"),
        ("Z-Image", (0.964, 0.750), "untried"),
        ("FLUX.1 schnell", (0.900, 0.500), "untried"),
        ("SD3.5", (0.964, 0.750), "untried"),
    ],
)
def test_a_run_is_told_its_window_and_who_says_so(pack, name, window, source):
    levels = pack("nodes.noise_levels").NoiseLevels()
    model = families.patcher(BY_NAME[name])
    text = levels.about(model, levels.window_of(model))
    assert text.startswith(f"Trained at {window[0]:.3f} to {window[1]:.3f} of noise, {source}"), text


def test_a_window_of_ones_own_is_said_to_be_that(pack):
    module = pack("nodes.noise_levels")
    model = families.patcher(BY_NAME["Z-Image"])
    window = pack("srpo_core.algorithm.noise_levels").Window(sigma_max=0.9, sigma_min=0.5)
    for of_schedule, expected in ((False, "0.900 to 0.500"), (True, "0.964 to 0.750")):
        levels = module.NoiseLevels(window=window, of_schedule=of_schedule)
        text = levels.about(model, levels.window_of(model))
        assert text == f"Trained at {expected} of noise, as set on SRPO Noise Levels."


def test_a_run_that_trains_at_the_rollouts_steps_is_told_which_levels_these_are(pack):
    module = pack("nodes.noise_levels")
    model = families.patcher(BY_NAME["FLUX.1 schnell"])
    levels = module.NoiseLevels(at_steps=True)
    window = levels.trained_window(model, pack("nodes.host.sampling").Sampling(steps=4))
    text = levels.about(model, window)
    assert text.startswith("Trained at 0.750, 0.500 of noise, where steps of the rollouts begin"), text


def test_what_is_advised_where_no_step_is_in_the_window_can_help(pack):
    module = pack("nodes.noise_levels")
    model = families.patcher(BY_NAME["FLUX.1 dev"])
    levels = module.NoiseLevels(at_steps=True)
    sampling = pack("nodes.host.sampling").Sampling
    with pytest.raises(ValueError, match="none of these 1 .* Give the rollouts more steps"):
        levels.trained_window(model, sampling(steps=1))
    window = pack("srpo_core.algorithm.noise_levels").Window(sigma_max=0.2, sigma_min=0.1)
    with pytest.raises(ValueError, match="none of these 4 .* Widen the window"):
        module.NoiseLevels(window=window, at_steps=True).trained_window(model, sampling(steps=4))
    with pytest.raises(ValueError, match="kl_optimal gives no noise levels for 1 steps"):
        levels.trained_window(model, sampling(steps=1, scheduler="kl_optimal"))
