"""What holds a trained model near the frozen one: the losses, their gradient, and what a run shows of them."""

import pytest
import torch
from tiny_run import world as tiny_world_parts
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward, numbers

from srpo_core.algorithm.guard import NO_GUARD, Guard, norm_ratio
from srpo_core.algorithm.metrics import describe, summarise
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Compared, Noised, one_step_recover, score_recovered
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import sample_scores


def test_the_loss_is_the_hinge_and_the_distance():
    frozen = numbers(1, 3, *SHAPE)
    velocity = frozen * torch.tensor([0.5, 1.0, 1.2]).view(-1, 1, 1, 1)
    torch.testing.assert_close(norm_ratio(velocity, frozen), torch.tensor([0.5, 1.0, 1.2]).double(), rtol=1e-6, atol=0)
    hinge = Guard(norm_weight=2.0).loss(velocity, frozen)
    pull = Guard(distance_weight=3.0).loss(velocity, frozen)
    torch.testing.assert_close(hinge, torch.tensor([0.0, 0.0, 0.4]).double(), rtol=0, atol=1e-6)
    mean_square = frozen.square().flatten(1).mean(1)
    torch.testing.assert_close(pull, 3 * mean_square * torch.tensor([0.25, 0.0, 0.04]), rtol=1e-6, atol=1e-12)
    assert Guard(norm_weight=2.0, distance_weight=3.0).loss(velocity, frozen).equal(hinge + pull)
    assert not NO_GUARD and Guard(norm_weight=1.0) and Guard(distance_weight=1.0)


def trained_a_little(flow):
    with torch.no_grad():
        flow.parameters["mix"] += 0.3 * numbers(11, 2, 2)
    return flow


@pytest.mark.parametrize(
    "guard",
    [
        Guard(norm_weight=0.7, distance_weight=0.0),
        Guard(norm_weight=0.0, distance_weight=0.5),
        Guard(norm_weight=0.7, distance_weight=0.5),
        NO_GUARD,
    ],
)
def test_the_gradient_is_that_of_the_whole_loss(guard):
    flow = trained_a_little(TinyFlow())
    data = TinyData()
    batch = 3
    cond = data.cond([0, 1, 2])
    prompts = data.prompts[:batch]
    noised = Noised(numbers(7, batch, *SHAPE), numbers(8, batch, *SHAPE), Window().branches([40, 500, 900]))
    for branch in noised.branches:
        s = branch.sigma_in.view(-1, 1, 1, 1)
        x = (1 - s) * noised.x0 + s * noised.noise
        velocity = flow.forward(x, branch.sigma_in, cond)
        straight = guard.loss(velocity, flow.forward(x, branch.sigma_in, cond, frozen=True)).sum()
        slope = ((branch.sigma_out - branch.sigma_in) / (1 - branch.sigma_out)).view(-1, 1, 1, 1)
        at_latent = numbers(9, batch, *SHAPE)
        straight = straight + (slope * velocity * at_latent).sum()
        expected = torch.autograd.grad(straight / 4, list(flow.parameters.values()))
        recovered = one_step_recover(flow, cond, noised, branch, compared=Compared(batch, cond), guard=guard)
        recovered.pull(at_latent, 1 / 4)
        for parameter, gradient in zip(flow.parameters.values(), expected):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)
            parameter.grad = None
        terms = [Term(reward=TinyReward(), objective=Objective())]
        found = describe(
            [summarise(score_recovered(recovered, branch, TinyDecoder(), terms, prompts=prompts, update=1))]
        )
        assert found["velocity_ratio"] == pytest.approx(recovered.velocity_ratio.mean().item()) != 1
        assert (found["guard"] > 0) == bool(guard)


def test_without_a_guard_one_sample_of_an_update_is_compared(tmp_path):
    parts = tiny_world_parts()
    asked = []
    frozen_velocity = parts["flow"].frozen_velocity
    parts["flow"].frozen_velocity = lambda x, *rest: asked.append(len(x)) or frozen_velocity(x, *rest)
    run = Run(tmp_path, parts["flow"].parameters, Settings())
    list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=4, at_once=2, pairs=2), **parts)))
    assert asked == [1]
    four = Batching(shape=SHAPE, batch=4, at_once=2)
    list(sample_scores(run, Training(batching=four, guard=Guard(norm_weight=1.0), **parts)))
    assert asked[1:] == [2] * 4
    train(run, Training(batching=Batching(shape=SHAPE), **parts), 1)
    assert run.history[0]["velocity_ratio"] == pytest.approx(1)  # nothing is trained yet


def test_a_guard_brings_an_inflated_model_back(tmp_path):
    distances = {}
    for name, guard in {"free": NO_GUARD, "hinge": Guard(norm_weight=1.0), "pull": Guard(distance_weight=1.0)}.items():
        parts = tiny_world_parts()
        flow = parts["flow"]
        with torch.no_grad():
            flow.parameters["mix"] *= 2
        run = Run(tmp_path / name, flow.parameters, Settings(learning_rate=3e-2))
        train(run, Training(batching=Batching(shape=SHAPE, batch=2), guard=guard, **parts), 40)
        x = numbers(3, 8, *SHAPE).float()
        sigma = torch.full((8,), 0.85)
        cond = torch.zeros(8)
        now, then = (flow.forward(x, sigma, cond, frozen).detach() for frozen in (False, True))
        distances[name] = ((now - then).square().mean().item(), norm_ratio(now, then).mean().item() - 1)
    assert distances["hinge"][1] < distances["free"][1] / 2
    assert distances["pull"][0] < distances["free"][0] / 4
