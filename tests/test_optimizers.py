"""Optimisers of other libraries, the schedule, the moving average, and that a run resumes bit for bit with each."""

import json
import math
import sys

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.loop import Schedule, train
from srpo_core.objective import Objective
from srpo_core.optimizers import OPTIMIZERS, learning_rate_factor, make_optimizer
from srpo_core.run import Run, Settings
from srpo_core.schedule import Window
from srpo_core.terms import Term

INSTALLED = [name for name in OPTIMIZERS if name != "AdamW 8-bit"]  # which needs a GPU
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
    terms = [Term(reward or TinyReward(), Objective())]
    parts = dict(decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())
    return dict(flow=TinyFlow(torch.float32), **parts)


def go(folder, updates, settings, reward=None):
    parts = world(reward)
    run = Run(folder, parts["flow"].parameters, settings)
    train(run, updates, Schedule(SHAPE, batch=2), **parts)
    return run


def state(run):
    slots = run.optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": v for i, held in slots.items() for k, v in held.items() if isinstance(v, torch.Tensor)}
    numbers = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    return {k: v.detach().clone() for k, v in {**run.parameters, **tensors, **run.ema}.items()}, json.dumps(numbers)


def same(first, second):
    return first[1] == second[1] and all(torch.equal(first[0][key], value) for key, value in second[0].items())


@pytest.mark.parametrize("name", INSTALLED)
def test_resumed_equals_uninterrupted(tmp_path, name):
    options = settings(name, warmup=2, cosine_to=8, ema=0.9)
    straight = go(tmp_path / "straight", 6, options)
    for updates in (1, 2, 3):
        pieces = go(tmp_path / "pieces", updates, options)
    assert same(state(pieces), state(straight)) and pieces.history == straight.history
    assert any(
        (p - q).abs().max() > 1e-7 for p, q in zip(straight.parameters.values(), world()["flow"].parameters.values())
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_a_failed_update_leaves_no_trace(tmp_path, name):
    go(tmp_path, 2, settings(name))
    parts = world(Failing())
    run = Run(tmp_path, parts["flow"].parameters, settings(name))
    before = state(run)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, 1, Schedule(SHAPE, batch=2), **parts)
    assert same(state(run), before) and run.updates == 2


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

    train(run, 3, Schedule(SHAPE, batch=2), on_update=check, **parts)
    live = run.parameters["mix"].detach().clone()
    with run.averaged():
        assert torch.equal(run.parameters["mix"], run.ema["mix"]) and not torch.equal(live, run.ema["mix"])
    assert torch.equal(run.parameters["mix"], live)


def test_a_moving_average_that_begins_later_begins_at_the_parameters(tmp_path):
    go(tmp_path, 2, settings("AdamW"))
    run = Run(tmp_path, world()["flow"].parameters, settings("AdamW", ema=0.9))
    assert all(torch.equal(run.ema[name], p) for name, p in run.parameters.items())


def test_learning_rate_factor():
    assert [learning_rate_factor(u, 0, 0) for u in (1, 2, 100)] == [1, 1, 1]
    assert [learning_rate_factor(u, 3, 0) for u in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = [learning_rate_factor(u, 2, 6) for u in range(1, 9)]
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)), 0, 0]
    assert cosine == pytest.approx(expected)


def test_a_changed_learning_rate_is_used_from_then_on(tmp_path):
    go(tmp_path, 2, settings("AdamW"))
    parts = world()
    run = Run(tmp_path, parts["flow"].parameters, Settings(learning_rate=0.0, weight_decay=0.0))
    before = run.parameters["mix"].detach().clone()
    train(run, 1, Schedule(SHAPE, batch=2), **parts)
    assert torch.equal(run.parameters["mix"], before)


def test_refusals(tmp_path, monkeypatch):
    go(tmp_path, 2, settings("AdamW"))
    with pytest.raises(ValueError, match="made with optimizer AdamW, not Prodigy"):
        Run(tmp_path, world()["flow"].parameters, settings("Prodigy"))
    with pytest.raises(ValueError, match='no optimiser "SGDD": choose one of AdamW'):
        make_optimizer("SGDD", [], 1e-3, 0.0)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match="pip install schedulefree"):
        make_optimizer("schedule-free AdamW", [], 1e-3, 0.0)


def test_a_run_of_a_newer_version_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_core.run.VERSION", 2)
    go(tmp_path, 2, settings("AdamW"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2, this one knows 1"):
        Run(tmp_path, world()["flow"].parameters, settings("AdamW"))
