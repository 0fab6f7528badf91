"""A training run: what an update computes, and what a failure leaves behind."""

import pytest
import torch
from tiny_run import HPS, SETTINGS, TWO, go, opened, same, state, world
from tiny_world import TinyFlow, TinyReward
from torch.nn import Parameter

from srpo_core.loop import sample_scores, train
from srpo_core.objective import Objective
from srpo_core.run import MAX_SKIPPED, Run, Settings
from srpo_core.terms import Term

# What an update computes


def test_first_step_is_adamws_on_the_clipped_mean_gradient(tmp_path):
    settings = Settings(learning_rate=1e-2, weight_decay=0.1, max_gradient_norm=0.01)
    schedule = TWO
    parts = world(dtype=torch.float64)
    for score in sample_scores(Run(tmp_path / "a", parts["flow"].parameters), schedule=schedule, **parts):
        score.pull(0.5)
    gradients = {name: p.grad for name, p in parts["flow"].parameters.items()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert norm > settings.max_gradient_norm

    run = go(tmp_path / "b", 1, schedule, settings, dtype=torch.float64)
    assert run.history[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for name, start in TinyFlow().parameters.items():
        clipped = gradients[name] * 0.01 / norm
        expected = start * (1 - 1e-2 * 0.1) - 1e-2 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(run.parameters[name], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(state(run)[f"{name}.exp_avg"], 0.1 * clipped, rtol=1e-4, atol=1e-12)


def test_training_lowers_the_loss(tmp_path):
    def losses(run):
        return torch.tensor([metrics["loss"] for metrics in run.history])

    objective = Objective(positive=("Real",), negative=("Oil",), branches="denoise")
    still, moved = (
        go(tmp_path / str(rate), 40, settings=Settings(learning_rate=rate), objective=objective) for rate in (0.0, 0.05)
    )
    assert losses(moved)[20:].mean() < losses(still)[20:].mean() - 0.01


# What a failure leaves behind


class SpoiltReward(TinyReward):
    """Not a number, or without a finite gradient, in the calls whose numbers are given."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls, self.spoil = calls, spoil

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


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_exception_inside_a_score_leaves_all_as_it_was(tmp_path, call):
    before = go(tmp_path / "run", 2)
    kept = state(before)

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    parts = world(SpoiltReward([call], out_of_memory))
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, 3, TWO, **parts)
    for left in (run, opened(tmp_path / "run")):
        assert same(state(left), kept) and left.history == before.history

    parts["terms"] = [Term(TinyReward(), HPS)]  # the same run goes on, with nothing left of the failed update
    train(run, 1, TWO, **parts)
    assert same(state(run), state(go(tmp_path / "straight", 3)))


def test_a_failure_in_the_first_update_leaves_no_run_behind(tmp_path):
    """So that the same name can be tried again with a smaller adapter."""

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        go(tmp_path / "run", 1, reward=SpoiltReward([1], out_of_memory))
    Run(tmp_path / "run", {"smaller": Parameter(torch.zeros(1, 2))})
