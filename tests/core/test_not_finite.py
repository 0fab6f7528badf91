"""What is no finite number, in an update or in the state after it: skipped or undone, counted and said."""

import math
import sys

import pytest
import torch
from faults import Fault, everything, not_a_number, opened_with, put_in, settings
from tiny_run import HPS, TWO, go, opened, same, state, world
from tiny_world import SHAPE, TinyReward
from torch.nn import Parameter

from srpo_core.algorithm.terms import Term
from srpo_core.run import undo
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.training import Training
from srpo_core.run.update import MAX_SKIPPED


class SpoiltReward(TinyReward):
    """Not a number, or without a finite gradient, in the calls whose numbers are given."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls = calls
        self.spoil = spoil

    def score_many(self, images, *texts):
        score = super().score_many(images, *texts)
        return self.spoil(score) if len(self.asked) in self.calls else score


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


SPOILS = {
    "both": lambda score: score * float("nan"),
    "loss": lambda score: score + float("nan"),  # the hinge's gradient at nan is 0: only the loss tells
    "gradient": InfiniteGradient.apply,
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_an_update_without_finite_gradient_is_skipped_and_counted(tmp_path, spoil):
    go(tmp_path, 1)
    before = state(opened(tmp_path))
    run = go(tmp_path, 1, reward=SpoiltReward([2], spoil))  # one of four scores is enough
    assert same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (2, 1, 1)
    assert all(parameter.grad is None for parameter in run.parameters.values())
    run = go(tmp_path, 1)
    assert not same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (3, 1, 0)


def test_the_run_stops_after_ten_skipped_in_a_row(tmp_path):
    good = go(tmp_path, 2)
    before = state(good)
    always = SpoiltReward(range(1000), SPOILS["loss"])
    go(tmp_path, MAX_SKIPPED - 1, reward=always)
    with pytest.raises(RuntimeError, match="10 updates in a row had no finite loss or gradient.*at update 12") as error:
        go(tmp_path, 5, reward=SpoiltReward(range(1000), SPOILS["loss"]))
    assert "Lower the learning rate (0.01)" in str(error.value)
    stopped = opened(tmp_path)
    assert same(state(stopped), before) and (stopped.updates, stopped.skipped) == (12, 10)


def test_a_finite_update_between_starts_the_count_again(tmp_path):
    calls = [call for call in range(1, 100) if (call - 1) // 4 % 10 != 9]  # four scores an update, each tenth is good
    run = go(tmp_path, 20, reward=SpoiltReward(calls, SPOILS["loss"]))
    assert (run.skipped, run.skipped_in_a_row) == (18, 0)


@pytest.mark.parametrize("stage", ["rollout", "velocity", "decode", "pull through the decoder"])
def test_what_is_not_a_number_anywhere_skips_the_update(tmp_path, stage):
    parts = world()
    fault = Fault(not_a_number)
    run = Run(tmp_path, parts["flow"].parameters, settings("schedule-free AdamW"))
    put_in(fault, stage, run, parts)
    train(run, Training(batching=TWO, **parts), 2)
    before = everything(run)
    fault.arm(2)
    train(run, Training(batching=TWO, **parts), 1)
    after = everything(run)
    assert (run.updates, run.skipped) == (3, 1)
    assert all(after[key] == before[key] for key in ("parameters", "ema", "slots", "groups", "spreads"))


def test_a_failure_in_the_first_update_leaves_no_run_behind(tmp_path):
    """So that the same name can be tried again with a smaller adapter."""

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        go(tmp_path / "run", 1, reward=SpoiltReward([1], out_of_memory))
    Run(tmp_path / "run", {"smaller": Parameter(torch.zeros(1, 2))})


# A state that is not finite


def poisoned(run: Run, place: str, value: float):
    """One number of the state after a step."""
    slots = run.optimizer.state_dict()["state"][0]
    tensors = {"parameter": run.parameters["mix"].data, "average": run.ema["bias"]}
    tensors |= {slot: tensor for slot, tensor in slots.items() if isinstance(tensor, torch.Tensor) and tensor.ndim}
    if place == "spread":
        run.spreads[""].mean = value
    elif place == "rollout":
        next(iter(run.rollouts.values())).view(-1)[-1] = value
    else:
        name = place if place in tensors else next(reversed(tensors))
        tensors[name].view(-1)[-1] = value


@pytest.mark.parametrize("optimizer, value", [("AdamW", math.nan), ("Prodigy", math.inf), ("AdamW", -math.inf)])
@pytest.mark.parametrize("place", ["parameter", "average", "a slot", "rollout", "spread"])
def test_a_step_that_leaves_what_is_not_finite_is_undone_and_counts_as_skipped(
    tmp_path, caplog, optimizer, place, value
):
    chosen = settings(optimizer)
    parts = world()
    batching = Batching(shape=SHAPE, batch=2, reuse=2)
    run = Run(tmp_path / "run", parts["flow"].parameters, chosen)
    train(run, Training(batching=batching, **parts), 3)
    before = everything(run)
    remember = run.remember

    def spoil(seen):
        remember(seen)
        poisoned(run, place, value)

    run.remember = spoil
    train(run, Training(batching=batching, **parts), 1)
    del run.remember
    after = everything(run)
    assert all(after[key] == before[key] for key in ("parameters", "ema", "slots", "groups", "spreads", "rollouts"))
    assert (run.updates, run.skipped, run.saved) == (4, 1, 4) and "Update 4 skipped: " in caplog.text
    assert everything(opened_with(run)) == after
    train(run, Training(batching=batching, **parts), 1)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (5, 1, 0)


def test_a_step_of_a_large_state_that_leaves_what_is_not_finite_goes_back_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(undo, "MOST_COPIED", 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    parts = world()
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    train(run, Training(batching=TWO, **parts), 2)
    before = everything(run)
    remember = run.remember
    run.remember = lambda seen: (remember(seen), poisoned(run, "parameter", math.nan))
    with pytest.raises(RuntimeError, match="Update 3 left numbers that are not finite in adapter.mix.* at update 2"):
        train(run, Training(batching=TWO, **parts), 1)
    del run.remember
    assert everything(run) == before == everything(opened_with(run))


def test_a_watching_reward_that_says_no_number_spoils_nothing(tmp_path):
    parts = world()
    spoilt = SpoiltReward(range(5, 9), SPOILS["loss"])
    parts["terms"] = [*parts["terms"], Term(reward=spoilt, objective=HPS, weight=0.0, name="watching")]
    run = Run(tmp_path, parts["flow"].parameters, settings())
    train(run, Training(batching=TWO, **parts), 3)
    assert run.skipped == 0 and math.isfinite(run.spreads["watching"].std)
    assert run.spreads["watching"].count < run.spreads[""].count
