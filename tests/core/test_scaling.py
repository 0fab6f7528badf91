"""Gradients through models in fp16, at the sizes that they have in training, against those in fp32."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_headless import COND, SIGMA, X, gradients, moved, new_flux
from torch import nn

from srpo_core.algorithm import scaling as scaled
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.scaling import backward, gradient_of_sum, pulled, unit_scale
from srpo_core.algorithm.step import ask
from srpo_core.algorithm.terms import Term
from srpo_core.headless.decoder import DiffusersDecoder
from srpo_core.headless.flux import FluxFlow
from srpo_core.rewards.dot_product import DotProductReward
from srpo_core.rewards.pixels import Pixels

# At 720x720 with a batch of 8; the last would be no number at all in fp16.
SIZES = [1e-6, 1e-7, 1e-8, 1e-12]


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@given(st.floats(2.0**-99, 2.0**99))
def test_the_scale_is_a_power_of_two_and_brings_a_magnitude_to_about_one(size):
    scale = unit_scale(torch.tensor(size)).item()
    assert 0.5 <= torch.tensor(size).item() * scale < 1
    assert torch.frexp(torch.tensor(scale)).mantissa == 0.5


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf"), -0.0])
def test_what_is_zero_or_not_finite_stays(size):
    assert unit_scale(torch.tensor(size)) == 1
    at = torch.tensor([[1.0, 2.0]], requires_grad=True)
    parameter = nn.Parameter(torch.ones(1, 2))
    found = pulled(lambda gradient: torch.autograd.grad(2 * at, at, gradient)[0], torch.tensor([[size, 0.0]]))
    backward(2 * parameter, torch.tensor([[size, 0.0]]), [parameter])
    for gradient in (found, parameter.grad):
        torch.testing.assert_close(gradient, torch.tensor([[2 * size, 0.0]]), rtol=0, atol=0, equal_nan=True)


@given(st.floats(1e-30, 1e30), st.integers(0, 2**31))
def test_in_fp32_no_bit_changes(size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, gradient = (torch.randn(3, 5, generator=generator) for _ in range(2))
    weight, twin = (nn.Parameter(torch.ones(5, 5).cos()) for _ in range(2))
    for _ in range(2):  # the second is added to the first
        backward(torch.tanh(x @ weight), size * gradient, [weight])
        torch.autograd.backward(torch.tanh(x @ twin), size * gradient)
    assert torch.equal(weight.grad, twin.grad)
    at = x.clone().requires_grad_()
    found = pulled(lambda g: torch.autograd.grad(torch.tanh(at @ twin), at, g)[0], size * gradient)
    assert torch.equal(found, torch.autograd.grad(torch.tanh(at @ twin), at, size * gradient)[0])


def test_no_hook_is_left_and_other_gradients_are_not_divided():
    parameter = nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError):
        backward(parameter.detach(), torch.ones(3), [parameter])
    parameter.sum().backward()
    assert torch.equal(parameter.grad, torch.ones(3))


def test_samples_of_very_different_size_do_not_lose_each_other():
    at = torch.ones(2, 4, requires_grad=True)
    gradient = torch.tensor([[1.0], [1e-9]]).expand(2, 4)
    found = pulled(lambda g: torch.autograd.grad(at.half() * 3, at, g.half())[0], gradient)
    torch.testing.assert_close(found, 3 * gradient, rtol=1e-3, atol=0)


# Models


@pytest.mark.parametrize("size", SIZES)
def test_velocity(size):
    exact = moved(FluxFlow(new_flux(), rank=4))
    half = moved(FluxFlow(copy.deepcopy(new_flux()).half(), rank=4))
    incoming = size * torch.cos(9 * X)
    for flow in (exact, half):
        for sigma in (SIGMA, SIGMA / 2):  # several branches add up
            flow.velocity(X, sigma, COND).pull(incoming)
    found = gradients(half)
    right = gradients(exact)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name in right:
        assert relative(found[name], right[name]) < 0.02


@pytest.mark.parametrize("size", SIZES)
def test_decoder(size):
    from oracle import random_vae

    latent = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(3))
    vae = random_vae()
    exact = DiffusersDecoder(vae).decode(latent)
    half = DiffusersDecoder(copy.deepcopy(vae).half()).decode(latent)
    incoming = size * torch.cos(9 * exact.value) * torch.tensor([1.0, 1e-3]).view(2, 1, 1, 1)
    for found, right in zip(half.pull(incoming), exact.pull(incoming)):
        assert relative(found, right) < 0.02


class Tower(nn.Module):
    """Features of a size as CLIP's; slope: of the image's own part."""

    def __init__(self, slope):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 64, 16, 16)
            self.out = nn.Linear(64, 256)
        self.slope = slope

    def forward(self, pixels):
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        return self.out(torch.tanh(self.slope * tokens)).mean(1) + 3 * self.out.bias


def reward_of(slope, dtype):
    reward = DotProductReward(Tower(slope).to(dtype), None, tokenize=None, pixels=Pixels(224), scale=1.0)
    reward.text_features = lambda texts: torch.nn.functional.normalize(torch.ones(len(texts), 256).cumsum(0).sin())
    return reward


@pytest.mark.parametrize("slope", [1e-4, 1e-2, 1.0, 30.0])
def test_reward(slope):
    """On a picture of training's size, over whose 1.5 million numbers the gradient of one score spreads."""
    image = torch.rand(1, 3, 720, 720, generator=torch.Generator().manual_seed(4))
    branch = Window().branches([500])[0]
    found, right = (
        ask(
            Term(reward=reward_of(slope, dtype), objective=Objective(threshold=9.0)),
            branch,
            image,
            prompts=["a"],
            update=1,
        )
        for dtype in (torch.float16, torch.float32)
    )
    assert relative(found[1], right[1]) < 0.02
    assert found[0].positive.dtype == torch.float32


def test_a_score_that_overflows_at_first_is_asked_again_and_a_hinge_at_its_end_is_not():
    for size in (1e-6, 1.0, 50.0, 1000.0, 60000.0):
        x = torch.ones(4, requires_grad=True)
        loss = (x.half() * size).float().view(2, 2).sum(1)
        assert relative(gradient_of_sum(loss, x), torch.full((4,), size)) < 1e-3
    passes = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: passes.append(gradient))
    assert gradient_of_sum(torch.relu(1 - y), x) == 0 and len(passes) == 1


def test_scaling_is_needed(monkeypatch):
    """What these tests hold: without it, most of the gradient is gone."""
    monkeypatch.setattr(scaled, "unit_scale", lambda largest: torch.ones_like(largest))
    half = moved(FluxFlow(new_flux().half(), rank=4))
    half.velocity(X, SIGMA, COND).pull(1e-8 * torch.cos(9 * X))
    assert all(not gradient.any() for gradient in gradients(half).values())
