"""SRPO Recovery Sweep on the toy, in this process with the host's own classes."""

from types import SimpleNamespace

import prompts
import pytest
import torch

SIZE = (16, 8, 8)  # of a latent of the toy's
COUNT = 4


class World:
    """The toy as its node gives it, a picture that it samples from the noise of SEED, and the node."""

    SEED = 3

    def __init__(self, pack):
        import comfy.sample

        self.pack = pack
        self.model, self.clip, self.vae, self.reward = pack("nodes.toy").ToyModels.execute().args
        self.cond = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompts.CAPTION))
        empty = torch.zeros(1, *SIZE)
        noise = comfy.sample.prepare_noise(empty, self.SEED)
        settings = (prompts.STEPS, 1.0, "euler", "simple", self.cond, self.cond, empty)
        self.latent = {"samples": comfy.sample.sample(self.model, noise, *settings, seed=self.SEED)}

    def sweep(self, **inputs):
        given = {"model": self.model, "positive": self.cond, "latent": self.latent, "vae": self.vae}
        given |= {"prompt": prompts.CAPTION, "count": COUNT, "seed": self.SEED, "gradient": False, "cfg": 1.0, **inputs}
        with torch.inference_mode():
            return self.pack("nodes.recovery_sweep").RecoverySweep.execute(**given).args


@pytest.fixture(scope="module")
def world(pack):
    module = pack("nodes.recovery_sweep")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "show_text", lambda text, node: None)
        patch.setattr(module, "preview", lambda *given: None)
        patch.setattr(module.RecoverySweep, "hidden", SimpleNamespace(unique_id="1"), raising=False)
        yield World(pack)


def test_what_comes_out(world):
    sheet, recovered, plain, summary = world.sweep(reward=world.reward, gradient=True)
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and sheet.shape[2] > 800
    assert recovered.shape == plain.shape == (COUNT, 64, 64, 3)
    assert 0 <= recovered.min() < recovered.max() <= 1
    assert "trained window, 0.9643 to 0.7500 of noise" in summary and "words-gap of toy CLIP" in summary
    assert "Gradient at the recovered latent" in summary


def test_the_noise_is_the_sampler_s_own(world):
    import comfy.sample

    module = world.pack("nodes.recovery_sweep")
    pair = {"samples": torch.cat([world.latent["samples"]] * 2)}
    x0, noise = module.first_picture(world.model, pair, world.SEED)
    expected = comfy.sample.prepare_noise(pair["samples"], world.SEED)[:1]
    assert torch.equal(noise, expected.to(noise))
    assert torch.equal(noise, comfy.sample.prepare_noise(world.latent["samples"], world.SEED).to(noise))
    assert torch.equal(x0, world.model.model.process_latent_in(world.latent["samples"]).to(x0))


def test_it_equals_the_nodes_of_one_step(world):
    """Noise-Prior Inject and One-Step Recover, where training's branch begins where a level does: at m = 900."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    steps = world.pack("nodes.steps")
    noise = Noise_RandomNoise(world.SEED)
    noised, *_ = steps.NoisePriorInject.execute(
        model=world.model, latent=world.latent, noise=noise, position=900, levels=None
    ).args
    _, denoise, _ = steps.OneStepRecover.execute(model=world.model, positive=world.cond, noised=noised, cfg=1.0).args
    expected = world.vae.decode(denoise["samples"])
    _, recovered, _, _ = world.sweep()
    torch.testing.assert_close(recovered[1:2], expected.to(recovered), rtol=0, atol=1e-3)


def test_the_window_is_the_socket_s(world):
    levels = world.pack("nodes.noise_levels")
    window = world.pack("srpo_core.algorithm.noise_levels").Window(sigma_max=0.5, sigma_min=0.25)
    summary = world.sweep(levels=levels.NoiseLevels(window=window))[-1]
    assert "0.5000 to 0.2500 of noise" in summary and "ords-gap" not in summary


def test_the_model_and_the_latent_are_as_they_were(world):
    before = {name: value.clone() for name, value in world.model.model.state_dict().items()}
    latent = world.latent["samples"].clone()
    world.sweep(reward=world.reward, gradient=True)
    after = world.model.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(latent, world.latent["samples"])
    assert not any("forward" in vars(module) for module in world.model.model.modules())
    assert not world.model.object_patches and not world.model.patches


def test_cancel_is_heard_at_each_level(world, monkeypatch):
    import comfy.model_management

    flow_model = world.pack("nodes.host.flow_model")
    asked = []
    velocity = flow_model.HostFlow.sampled_velocity

    def cancelled(self, *given):
        asked.append(1)
        if len(asked) == 2:
            comfy.model_management.interrupt_current_processing()
        return velocity(self, *given)

    monkeypatch.setattr(flow_model.HostFlow, "sampled_velocity", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        world.sweep()
    assert len(asked) == 2
    comfy.model_management.interrupt_current_processing(False)


def latent(*shape, fill=1.0) -> dict:
    return {"samples": torch.full(shape, fill)}


REFUSED = {
    "an empty latent": (lambda w: {"latent": latent(1, *SIZE, fill=0.0)}, "no picture in the latent"),
    "none at all": (lambda w: {"latent": latent(0, *SIZE)}, "no picture in the latent"),
    "NaN": (lambda w: {"latent": latent(1, *SIZE, fill=torch.nan)}, "latent holds NaN"),
    "another model's latent": (lambda w: {"latent": latent(1, 4, 8, 8)}, r"shape \(1, 4, 8, 8\)"),
    "a video": (lambda w: {"latent": latent(1, 16, 1, 8, 8)}, r"shape \(1, 16, 1, 8, 8\)"),
    "another VAE": (
        lambda w: {"vae": SimpleNamespace(latent_dim=2, latent_channels=4)},
        "This VAE has 4 latent channels",
    ),
    "no prompt": (lambda w: {"positive": []}, "conditioning is empty"),
    "no reward": (lambda w: {"objective": w.pack("nodes.objective").DEFAULT}, "no reward to ask"),
    "too few": (lambda w: {"count": 3}, "count is 3"),
    "a count that is none": (lambda w: {"count": torch.nan}, "count is nan"),
    "a text that is none": (lambda w: {"prompt": None}, "prompt is None"),
}


@pytest.mark.parametrize("changed, sentence", REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused_in_a_sentence(world, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        world.sweep(**changed(world))
