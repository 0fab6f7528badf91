"""Optimisers of other libraries, the learning rate over a run, the moving average; each resumes bit for bit."""

import json
import math
import sys

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.optimizers import (
    OPTIMIZERS,
    learning_rate_factor,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
)
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training

RATE = {"Prodigy": 1.0}


class Failing(TinyReward):
    """Runs out of memory in its last call."""

    def score_many(self, images, *texts):
        score = super().score_many(images, *texts)
        if len(self.asked) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score


def settings(name, **more) -> Settings:
    return Settings(learning_rate=RATE.get(name, 1e-2), optimizer=name, save_every=2, **more)


def world(reward=None):
    terms = [Term(reward=reward or TinyReward(), objective=Objective())]
    parts = dict(decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())
    return dict(flow=TinyFlow(torch.float32), **parts)


def go(folder, updates, settings, reward=None):
    parts = world(reward)
    run = Run(folder, parts["flow"].parameters, settings)
    train(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts), updates)
    return run


def state(run):
    slots = run.optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": v for i, held in slots.items() for k, v in held.items() if isinstance(v, torch.Tensor)}
    numbers = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    return {k: v.detach().clone() for k, v in {**run.parameters, **tensors, **run.ema}.items()}, json.dumps(
        numbers, default=float
    )


def same(first, second):
    return first[1] == second[1] and all(torch.equal(first[0][key], value) for key, value in second[0].items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_uninterrupted(tmp_path, name):
    options = settings(name, warmup=2, cosine_to=8, ema=0.9)
    straight = go(tmp_path / "straight", 6, options)
    for updates in (1, 2, 3):
        pieces = go(tmp_path / "pieces", updates, options)
    assert same(state(pieces), state(straight)) and pieces.history == straight.history
    assert any(
        (p - q).abs().max() > 1e-7 for p, q in zip(straight.parameters.values(), world()["flow"].parameters.values())
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_failed_update_leaves_no_trace(tmp_path, name):
    go(tmp_path, 2, settings(name))
    parts = world(Failing())
    run = Run(tmp_path, parts["flow"].parameters, settings(name))
    before = state(run)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts), 1)
    assert same(state(run), before) and run.updates == 2


def steps(optimizer, parameter, numbers):
    """Steps on gradients that their numbers give, where schedule-free takes them; ends at its average."""
    for number in numbers:
        getattr(optimizer, "train", lambda: None)()
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
        optimizer.step()
        getattr(optimizer, "eval", lambda: None)()


def test_a_run_of_a_gpu_goes_on_without_one_and_back():
    """There AdamW is fused, which is a setting of its groups."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 64))
    straight = torch.nn.Parameter(parameter.detach().clone())
    whole = torch.optim.AdamW([straight])
    optimizer = torch.optim.AdamW([parameter], fused=True)
    steps(whole, straight, range(6))
    for number, fused in enumerate((True, False, True)):
        saved = optimizer_state(optimizer, ["p"])
        optimizer = torch.optim.AdamW([parameter], fused=fused)
        restore_optimizer(optimizer, ["p"], *saved)
        assert optimizer.param_groups[0]["fused"] is fused
        steps(optimizer, parameter, range(2 * number, 2 * number + 2))
    torch.testing.assert_close(parameter, straight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_uninterrupted_in_bf16(name):
    start = torch.linspace(-1e-4, 1e-4, 64, dtype=torch.bfloat16)  # so small that Prodigy's first steps count
    parameters = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    chosen = Settings(optimizer=name, learning_rate=RATE.get(name, 1e-2), weight_decay=1e-2)
    straight, first = (make_optimizer([p], chosen) for p in parameters)
    steps(straight, parameters[0], range(6))
    steps(first, parameters[1], range(3))
    again = make_optimizer([parameters[1]], chosen)
    restore_optimizer(again, ["p"], *optimizer_state(first, ["p"]))
    steps(again, parameters[1], range(3, 6))
    assert torch.equal(*parameters) and not torch.equal(parameters[0], start)


def test_eight_bits_resume(tmp_path):
    """Both moments are quantised of parameters of 4,096 numbers and more; through the file of a run."""

    def trained(folder, updates):
        parameters = {name: torch.nn.Parameter(torch.linspace(-1, 1, 4096)) for name in ("p", "q")}
        run = Run(folder, parameters, settings("AdamW 8-bit", max_gradient_norm=1e9))
        for update in range(run.updates, run.updates + updates):
            steps(run.optimizer, parameters["p"], [update])
            parameters["p"].grad = None
            steps(run.optimizer, parameters["q"], [100 + update])
            parameters["q"].grad = None
            run.updates += 1
        run.save()
        return run

    straight = trained(tmp_path / "straight", 5)
    for updates in (2, 3):
        pieces = trained(tmp_path / "pieces", updates)
    assert same(state(pieces), state(straight))
    moments = [state["state1"].dtype for state in straight.optimizer.state.values()]
    assert moments == [torch.uint8] * 2
    exact = torch.nn.Parameter(torch.linspace(-1, 1, 4096))
    steps(make_optimizer([exact], Settings(optimizer="AdamW", learning_rate=1e-2, weight_decay=1e-4)), exact, range(5))
    moved = exact.detach() - torch.linspace(-1, 1, 4096)
    assert (straight.parameters["p"].detach() - exact.detach()).norm() < 0.1 * moved.norm()


def after_steps(name, dtype, count=200, rate=1e-4, decay=0.0):
    """Where a parameter of 1 is after `count` steps against a gradient of 1."""
    parameter = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = make_optimizer([parameter], Settings(optimizer=name, learning_rate=rate, weight_decay=decay))
    for _ in range(count):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return parameter.detach()[0].item()


def test_kahan_sums_keep_what_bf16_rounds_off():
    """A step of 1e-4 is less than half of bf16's spacing below 1, 2^-8: without the sums none of them counts."""
    exact, kept, lost = (
        after_steps(name, dtype)
        for name, dtype in [
            ("AdamW", torch.float32),
            ("AdamW with Kahan sums", torch.bfloat16),
            ("AdamW", torch.bfloat16),
        ]
    )
    assert exact == pytest.approx(0.98, abs=1e-4)
    assert kept == pytest.approx(exact, abs=2**-8) and lost == 1


def test_kahan_sums_are_adamw_in_fp32():
    for decay in (0.0, 0.1):
        ours, torchs = (after_steps(n, torch.float32, 50, 1e-2, decay) for n in ("AdamW with Kahan sums", "AdamW"))
        assert ours == pytest.approx(torchs, abs=1e-6)


def test_small_gradients_step_as_far():
    """Clipping to the published norm leaves a large model gradients of 1e-6 and less for each parameter."""
    parameter = torch.nn.Parameter(torch.zeros(8))
    optimizer = make_optimizer(
        [parameter], Settings(optimizer="AdamW with Kahan sums", learning_rate=1e-3, weight_decay=0.0)
    )
    parameter.grad = torch.full((8,), 1e-6)
    optimizer.step()
    assert parameter.detach().numpy() == pytest.approx(-1e-3, rel=0.02)


def test_a_moving_average_of_bf16_parameters_is_exact(tmp_path):
    """An average in bf16 would never leave 1: a hundredth of what it lacks is less than the spacing."""
    parameters = {"p": torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}
    run = Run(tmp_path, parameters, settings("AdamW", ema=0.99))
    parameters["p"].data.fill_(1.125)
    for _ in range(100):
        run.average()
    torch.testing.assert_close(run.ema["p"], torch.full((4,), 1.125 - 0.125 * 0.99**100))


def test_schedule_free_is_judged_at_its_average(tmp_path):
    """Between updates the parameters are schedule-free's x, not the y where gradients are taken."""
    run = go(tmp_path, 4, settings("schedule-free AdamW"))
    judged = [p.detach().clone() for p in run.parameters.values()]
    run.optimizer.train()
    assert any((p - x).abs().max() > 1e-6 for p, x in zip(run.parameters.values(), judged))


def test_moving_average(tmp_path):
    parts = world()
    run = Run(tmp_path, parts["flow"].parameters, settings("AdamW", ema=0.75))
    expected = run.parameters["mix"].detach().clone()

    def check(_):
        nonlocal expected
        expected = 0.75 * expected + 0.25 * run.parameters["mix"].detach()
        torch.testing.assert_close(run.ema["mix"], expected)

    train(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts), 3, check)
    live = run.parameters["mix"].detach().clone()
    with run.averaged():
        assert torch.equal(run.parameters["mix"], run.ema["mix"]) and not torch.equal(live, run.ema["mix"])
    assert torch.equal(run.parameters["mix"], live)


def test_a_moving_average_that_begins_later_begins_at_the_parameters(tmp_path):
    go(tmp_path, 2, settings("AdamW"))
    run = Run(tmp_path, world()["flow"].parameters, settings("AdamW", ema=0.9))
    assert all(torch.equal(run.ema[name], p) for name, p in run.parameters.items())


def test_learning_rate_factor():
    assert [learning_rate_factor(u, Settings(warmup=0, cosine_to=0)) for u in (1, 2, 100)] == [1, 1, 1]
    assert [learning_rate_factor(u, Settings(warmup=3, cosine_to=0)) for u in (1, 2, 3, 4, 5)] == [
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]
    cosine = [learning_rate_factor(u, Settings(warmup=2, cosine_to=6)) for u in range(1, 9)]
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)), 0, 0]
    assert cosine == pytest.approx(expected)


def test_a_changed_learning_rate_is_used_from_then_on(tmp_path):
    go(tmp_path, 2, settings("AdamW"))
    parts = world()
    run = Run(tmp_path, parts["flow"].parameters, Settings(learning_rate=0.0, weight_decay=0.0))
    before = run.parameters["mix"].detach().clone()
    train(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts), 1)
    assert torch.equal(run.parameters["mix"], before)


def test_refusals(tmp_path, monkeypatch):
    go(tmp_path, 2, settings("AdamW"))
    with pytest.raises(ValueError, match="made with optimizer AdamW, not Prodigy"):
        Run(tmp_path, world()["flow"].parameters, settings("Prodigy"))
    with pytest.raises(ValueError, match='no optimiser "SGDD": choose one of AdamW'):
        make_optimizer([], Settings(optimizer="SGDD", learning_rate=1e-3, weight_decay=0.0))
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match="pip install schedulefree"):
        make_optimizer([], Settings(optimizer="schedule-free AdamW", learning_rate=1e-3, weight_decay=0.0))


def test_a_run_of_a_newer_version_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_core.run.run.VERSION", 2)
    go(tmp_path, 2, settings("AdamW"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2, this one knows 1"):
        Run(tmp_path, world()["flow"].parameters, settings("AdamW"))
