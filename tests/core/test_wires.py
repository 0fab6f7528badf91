"""Scores that are not the run's own: of another run, of no run, of older weights, or of a wire past the adapter."""

import pytest
import torch
from tiny_run import SETTINGS, TWO, everything_of, state, world
from tiny_world import SHAPE, TinyFlow, TinyReward

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run import update
from srpo_core.run.draws import Batching
from srpo_core.run.run import Run
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores


def opened(folder, **options):
    parts = world(**options)
    return Run(folder, parts["flow"].parameters, SETTINGS), parts


def scores_of(run, parts, batching=TWO):
    return list(sample_scores(run, Training(batching=batching, **parts)))


def gradients(run):
    return [None if p.grad is None else p.grad.clone() for p in run.parameters.values()]


class Plain(TinyFlow):
    """A model without an adapter."""

    def __init__(self):
        super().__init__(torch.float32)
        self.parameters = {}

    def forward(self, x, sigma, cond, frozen=True):
        return super().forward(x, sigma, cond, frozen=True)

    def rollout(self, noise, cond, seed=0):
        return noise


class Bypassed(TinyFlow):
    """The wire goes past the adapter: its velocity does not depend on it."""

    def velocity(self, x, sigma, cond):
        pulled = super().velocity(x, sigma, cond)
        pulled.pull = self.lost
        return pulled

    def lost(self, gradient):
        pass


class Multiplied(Bypassed):
    """The same, where backward reaches the parameters with zeros."""

    def lost(self, gradient):
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)


def own(run, parts, other, others):
    return scores_of(run, parts)


def of_another_run(run, parts, other, others):
    return scores_of(other, others)


def mixed(run, parts, other, others):
    return [*scores_of(run, parts), *scores_of(other, others)]


def of_no_run(run, parts, other, others):
    return scores_of(run, dict(parts, flow=Plain()))


def of_older_weights(run, parts, other, others):
    scores = scores_of(run, parts)
    make_update(run, scores_of(run, parts), 2)
    return scores


def past_the_adapter(run, parts, other, others, kind=Bypassed):
    flow = kind(torch.float32)
    flow.parameters = run.parameters
    return scores_of(run, dict(parts, flow=flow))


def with_zeros(run, parts, other, others):
    return past_the_adapter(run, parts, other, others, Multiplied)


def that_only_watch(run, parts, other, others):
    scores = scores_of(run, dict(parts, terms=[Term(reward=TinyReward(), objective=Objective())]))
    from dataclasses import replace

    return [replace(s, trains=False, gradient=torch.zeros_like(s.gradient)) for s in scores]


def none_at_all(run, parts, other, others):
    return []


WRONG = {
    of_another_run: "of another run's MODEL",
    mixed: "of another run's MODEL",
    of_no_run: "a MODEL with nothing to train",
    of_older_weights: "made for update 1 .* the next one is 2",
    past_the_adapter: "none of it reached",
    with_zeros: "none of it reached",
    that_only_watch: "all watch and none trains",
    none_at_all: "no reward from which",
}


@pytest.mark.parametrize("wrong, sentence", WRONG.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_wire_is_refused_and_spoils_nothing(tmp_path, monkeypatch, wrong, sentence):
    # Scores that other nodes made come without what the loop checks of a model first.
    monkeypatch.setattr(update, "check_gradients", lambda *_: None)
    (a, parts) = opened(tmp_path / "a")
    (b, others) = opened(tmp_path / "b")
    scores = wrong(a, parts, b, others)
    before = state(a)
    updates = a.updates
    history = list(a.history)
    with pytest.raises(ValueError, match=sentence):
        make_update(a, scores, 2)
    assert all(torch.equal(value, before[name]) for name, value in state(a).items())
    assert (a.updates, a.history) == (updates, history)
    assert gradients(a) == gradients(b) == [None, None]
    # Both go on as if nothing had been.
    for run, its, name in ((a, parts, "a"), (b, others, "b")):
        make_update(run, scores_of(run, its), 2)
        straight, straight_parts = opened(tmp_path / f"straight {name}")
        for _ in range(run.updates):
            make_update(straight, scores_of(straight, straight_parts), 2)
        assert everything_of(run) == everything_of(straight)


def test_gradients_that_others_left_do_not_count(tmp_path):
    (clean, parts) = opened(tmp_path / "clean")
    (spoilt, others) = opened(tmp_path / "spoilt")
    for parameter in spoilt.parameters.values():
        parameter.grad = torch.full_like(parameter, 1e3)
    make_update(clean, scores_of(clean, parts), 2), make_update(spoilt, scores_of(spoilt, others), 2)
    assert everything_of(clean) == everything_of(spoilt)


def test_an_update_whose_hinges_are_all_met_is_one(tmp_path):
    """Nothing is left to learn: no gradient, no fault. Weight decay and the average go on."""
    run, parts = opened(tmp_path, objective=Objective(threshold=-100.0))
    metrics = make_update(run, scores_of(run, parts), 2)
    assert metrics["loss"] == metrics["gradient_norm"] == 0 and run.updates == 1


def test_scores_of_a_step_that_failed_can_be_used_again(tmp_path):
    """A cached node hands them out once more: nothing was changed, so they are of the weights as they are."""
    run, parts = opened(tmp_path / "failing")
    rescored = scores_of(run, parts)
    step = run.optimizer.step
    run.optimizer.step = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        make_update(run, scores_of(run, parts), 2)
    run.optimizer.step = step
    make_update(run, rescored, 2)
    straight, others = opened(tmp_path / "straight")
    make_update(straight, scores_of(straight, others), 2)
    assert everything_of(run) == everything_of(straight)


@pytest.mark.parametrize("prompts", [0, -1, 1.5, float("nan"), True, "2"])
def test_an_update_is_of_some_prompts(tmp_path, prompts):
    run, parts = opened(tmp_path)
    with pytest.raises(ValueError, match="prompts is"):
        make_update(run, scores_of(run, parts, Batching(shape=SHAPE)), prompts)
