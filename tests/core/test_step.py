"""The stages of a training step, against the whole loss written out in one graph."""

import zlib

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward, numbers
from torch.nn import Parameter

from srpo_core.algorithm.metrics import describe, saturation, summarise
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.protocols import Pullback
from srpo_core.algorithm.step import Noised, one_step_recover, score_recovered
from srpo_core.algorithm.terms import Term

POSITIONS = (40, 500, 900)
UPDATE = 3


def world(batch):
    data = TinyData()
    indices = list(range(batch))
    noised = Noised(numbers(7, batch, *SHAPE), numbers(8, batch, *SHAPE), Window().branches(list(POSITIONS[:batch])))
    return TinyFlow(), data.cond(indices), noised, data.prompts[:batch]


def score(flow, cond, noised, branch, prompts, decoder=None, reward=None):
    recovered = one_step_recover(flow, cond, noised, branch)
    terms = [Term(reward=reward or TinyReward(), objective=Objective())]
    return score_recovered(recovered, branch, decoder or TinyDecoder(), terms, prompts=prompts, update=UPDATE)


def straight_loss(flow, cond, noised, branch, prompts, i):
    """The loss of sample `i` in one graph, from the formulas of the paper: (loss, positive, negative, image)."""
    s_in, s_out, index = (values[i].item() for values in (branch.sigma_in, branch.sigma_out, branch.grid_index))
    x0 = noised.x0[i : i + 1]
    noise = noised.noise[i : i + 1]
    x = (1 - s_in) * x0 + s_in * noise
    x = x + (s_out - s_in) * flow.forward(x, branch.sigma_in[i : i + 1], cond[i : i + 1])
    image = TinyDecoder().forward((x - s_out * noise) / (1 - s_out)).clamp(0, 1)[0]
    positive = TinyReward().one(image, f"Real. {prompts[i]}")  # update 3: the fourth positive word
    negative = TinyReward().one(image, f"Flat. {prompts[i]}")
    if branch.name == "denoise":
        relative = (1 + 0.10 + 0.15 * index / 999) * positive - negative
    else:
        relative = (1 + 0.30 - 0.29 * index / 999) * negative - positive
    return torch.relu(0.7 - relative) / 2, positive, negative, image


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("branches", ["denoise", "inversion", "both"])
def test_gradient_is_that_of_the_whole_loss(batch, branches):
    flow, cond, noised, prompts = world(batch)
    trained = [branch for branch in noised.branches if Objective(branches=branches).trains(branch)]
    losses = [straight_loss(flow, cond, noised, b, prompts, i)[0] for b in trained for i in range(batch)]
    assert all(loss > 0 for loss in losses)
    expected = torch.autograd.grad(sum(losses) / batch, list(flow.parameters.values()))
    for branch in trained:
        score(flow, cond, noised, branch, prompts).pull(1 / batch)
    for parameter, gradient in zip(flow.parameters.values(), expected):
        assert gradient.norm() > 1e-4
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)


def test_score_tells_what_the_reward_saw():
    flow, cond, noised, prompts = world(3)
    for branch in noised.branches:
        found = score(flow, cond, noised, branch, prompts)
        straight = zip(*(straight_loss(flow, cond, noised, branch, prompts, i) for i in range(3)))
        loss, positive, negative, image = (torch.stack(values).detach() for values in straight)
        for value, expected in (
            (found.loss, loss),
            (found.answers[0].positive, positive),
            (found.answers[0].negative, negative),
            (found.image, image),
        ):
            assert not value.requires_grad
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        outside = TinyDecoder().forward(one_step_recover(flow, cond, noised, branch).value)
        assert 0 < found.clipped < 1
        assert found.clipped.item() == pytest.approx(((outside < 0) | (outside > 1)).double().mean().item(), abs=1e-6)


def test_gradient_at_the_latent_is_of_the_summed_loss():
    flow, cond, noised, prompts = world(3)
    branch = noised.branches[0]
    latent = one_step_recover(flow, cond, noised, branch).value.requires_grad_()
    image = TinyDecoder().forward(latent).clamp(0, 1)
    objective = Objective()
    loss = objective.loss(branch, *TinyReward().score_many(image, *objective.texts(prompts, UPDATE)))
    (expected,) = torch.autograd.grad(loss.sum(), latent)
    torch.testing.assert_close(score(flow, cond, noised, branch, prompts).gradient, expected, rtol=0, atol=1e-12)


def test_samples_of_a_batch_do_not_mix():
    flow, cond, noised, prompts = world(3)
    together = [score(flow, cond, noised, branch, prompts) for branch in noised.branches]
    for i in range(3):
        branches = Window().branches([POSITIONS[i]])
        alone = Noised(noised.x0[i : i + 1], noised.noise[i : i + 1], branches)
        for whole, branch in zip(together, branches):
            one = score(flow, cond[i : i + 1], alone, branch, prompts[i : i + 1])
            torch.testing.assert_close(one.loss, whole.loss[i : i + 1], rtol=0, atol=1e-12)
            torch.testing.assert_close(one.gradient, whole.gradient[i : i + 1], rtol=0, atol=1e-12)


def test_weight_scales_the_gradient():
    gradients = []
    for weight in (1.0, 0.25):
        flow, cond, noised, prompts = world(1)
        score(flow, cond, noised, noised.branches[0], prompts).pull(weight)
        gradients.append(flow.parameters["mix"].grad)
    torch.testing.assert_close(gradients[0] / 4, gradients[1], rtol=0, atol=1e-12)


class BiasFlow(TinyFlow):
    """A velocity of one trainable number for each latent value, whatever the input."""

    def __init__(self):
        self.parameters = {"velocity": Parameter(numbers(4, 1, *SHAPE) / 10)}

    def forward(self, x, sigma, cond):
        return self.parameters["velocity"].expand_as(x)


class LinearReward(TinyReward):
    def one(self, image, text):
        return (image * numbers(zlib.crc32(text.encode()), *image.shape).to(image)).mean()


class GreyDecoder(TinyDecoder):
    """Its pictures are dull enough that nothing is clipped."""

    def forward(self, latent):
        return 0.5 + 0.05 * (super().forward(latent) - 0.5)


def test_the_same_gradient_reaches_the_velocity_with_opposite_signs():
    flow, cond, noised, _ = world(1)
    noised = Noised(noised.x0, noised.noise, Window().branches([500]))
    gradients = []
    for branch in noised.branches:
        flow = BiasFlow()
        one_step_recover(flow, cond, noised, branch).pull(torch.ones(1, *SHAPE, dtype=torch.float64), 1.0)
        gradients.append(flow.parameters["velocity"].grad)
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=0, atol=1e-12)
    assert (gradients[0] < 0).all()  # more velocity, less recovered: d x0_hat / d v = -w


def test_inversion_descends_on_the_negative_words():
    """A step down the inversion branch's loss alone makes the model's own (denoised) picture less like them."""
    _, cond, noised, prompts = world(1)
    noised = Noised(noised.x0, noised.noise, Window().branches([500]))
    denoise, inversion = noised.branches
    flow = BiasFlow()
    parts = dict(decoder=GreyDecoder(), reward=LinearReward())
    before = score(flow, cond, noised, denoise, prompts, **parts)
    down = score(flow, cond, noised, inversion, prompts, **parts)
    assert before.clipped == down.clipped == 0
    down.pull(1.0)
    with torch.no_grad():
        flow.parameters["velocity"] -= 10 * flow.parameters["velocity"].grad
    after = score(flow, cond, noised, denoise, prompts, **parts)
    assert score(flow, cond, noised, inversion, prompts, **parts).loss < down.loss
    assert after.answers[0].negative < before.answers[0].negative
    gaps = [(s.answers[0].positive - s.answers[0].negative).item() for s in (before, after)]
    assert gaps[1] > gaps[0]


def test_nothing_flows_to_x0_and_noise():
    flow, cond, noised, prompts = world(1)
    noised.x0.requires_grad_()
    noised.noise.requires_grad_()
    for branch in noised.branches:
        recovered = one_step_recover(flow, cond, noised, branch)
        assert not recovered.value.requires_grad
        score(flow, cond, noised, branch, prompts).pull(1.0)
    assert noised.x0.grad is None and noised.noise.grad is None
    assert flow.parameters["mix"].grad.norm() > 0


def test_clipped_pixels_carry_no_gradient():
    class Decoder(TinyDecoder):
        def decode(self, latent):
            image = torch.full((1, 3, 8, 8), 1.5, dtype=latent.dtype)
            image[..., 0] = 0.5
            return Pullback(image, lambda gradient: seen.append(gradient) or torch.zeros_like(latent))

    seen = []
    flow, cond, noised, prompts = world(1)
    found = score(flow, cond, noised, noised.branches[0], prompts, decoder=Decoder())
    assert found.clipped.item() == pytest.approx(7 / 8)
    assert (seen[0][..., 1:] == 0).all() and (seen[0][..., 0] != 0).all()
    assert found.image.max() == 1


def test_stages_work_inside_inference_mode():
    """ComfyUI runs nodes under inference_mode; the gradient must come out all the same."""
    flow, cond, noised, prompts = world(1)
    recovered = one_step_recover(flow, cond, noised, noised.branches[0])
    with torch.inference_mode():
        terms = [Term(reward=TinyReward(), objective=Objective())]
        found = score_recovered(recovered, noised.branches[0], PlainDecoder(), terms, prompts=prompts, update=UPDATE)
    expected = score(flow, cond, noised, noised.branches[0], prompts)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=0, atol=1e-12)


class PlainDecoder(TinyDecoder):
    def decode(self, latent):
        with torch.inference_mode(False):
            pulled = super().decode(latent.clone())

        def pull(gradient):
            with torch.inference_mode(False):
                return pulled.pull(gradient.clone())

        return Pullback(pulled.value, pull)


def test_saturation():
    colours = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0], [0.8, 0.4, 0.4]])
    assert saturation(colours[:, :, None, None]).item() == pytest.approx((1 + 0 + 0 + 0.5) / 4)


def test_describe_averages_over_samples():
    flow, cond, noised, prompts = world(3)
    together = describe([summarise(score(flow, cond, noised, branch, prompts)) for branch in noised.branches])
    scores = []
    for part in (slice(0, 2), slice(2, 3)):
        half = Noised(noised.x0[part], noised.noise[part], Window().branches(list(POSITIONS[part])))
        scores += [score(flow, cond[part], half, branch, prompts[part]) for branch in half.branches]
    assert describe(list(map(summarise, scores))) == pytest.approx(together, abs=1e-6)
    assert together["words_gap"] == pytest.approx(together["reward_positive"] - together["reward_negative"])
    sigmas = [branch.sigma_out.mean().item() for branch in noised.branches]
    assert together["sigma"] == pytest.approx(sum(sigmas) / 2)
