"""Several rewards in one update: weights, spreads, watching, and what a resumed run remembers of them."""

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward, numbers

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Spread, Term, combine
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import sample_scores

HPS = Objective()
SCHEDULE = Batching(shape=SHAPE, batch=2, at_once=2)


class Scaled(TinyReward):
    """The same opinion in other units."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def score_many(self, images, *texts):
        return self.scale * super().score_many(images, *texts)


class Silent(TinyReward):
    """A reward that must not be differentiated."""

    def score_many(self, images, *texts):
        assert not images.requires_grad and not torch.is_grad_enabled()
        return super().score_many(images, *texts)


def world(*terms):
    parts = dict(decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())
    return dict(flow=TinyFlow(), **parts)


def gradients(folder, *terms):
    """Of the first update, with all its numbers."""
    parts = world(*terms)
    scores = list(sample_scores(Run(folder, parts["flow"].parameters), Training(batching=SCHEDULE, **parts)))
    for score in scores:
        score.pull(1.0)
    return torch.cat([p.grad.flatten() for p in parts["flow"].parameters.values()]), scores


def go(folder, updates, *terms):
    parts = world(*terms)
    run = Run(folder, parts["flow"].parameters, Settings(learning_rate=1e-2))
    train(run, Training(batching=SCHEDULE, **parts), updates)
    return run


def test_weighed_rewards_add_up(tmp_path):
    other = Objective(positive=("Dark",), negative=("Bright",), threshold=0.5)
    first = Term(reward=TinyReward(), objective=HPS)
    second = Term(reward=TinyReward(), objective=other, weight=0.3, name="dark")
    together, scores = gradients(tmp_path, first, second)
    alone = gradients(tmp_path, first)[0], gradients(tmp_path, Term(reward=TinyReward(), objective=other))[0]
    assert alone[0].norm() > 0 and alone[1].norm() > 0
    torch.testing.assert_close(together, alone[0] + 0.3 * alone[1], rtol=0, atol=1e-12)
    for score in scores:
        losses = [answer.loss for answer in score.answers]
        torch.testing.assert_close(score.loss, losses[0] + 0.3 * losses[1], rtol=0, atol=1e-12)


def test_a_watching_reward_trains_nothing_and_is_logged(tmp_path):
    watcher = Term(
        reward=Silent(), objective=Objective(positive=("Dark",), negative=("Bright",)), weight=0.0, name="watch"
    )
    watched, _ = gradients(tmp_path / "a", Term(reward=TinyReward(), objective=HPS), watcher)
    assert torch.equal(watched, gradients(tmp_path / "b", Term(reward=TinyReward(), objective=HPS))[0])
    metrics = go(tmp_path / "c", 1, *combine([Term(reward=TinyReward(), objective=HPS), watcher])).history[0]
    assert {"words_gap", "words_gap/watch", "reward_positive/watch"} <= metrics.keys()
    assert metrics["words_gap/watch"] != metrics["words_gap"]


def test_each_reward_trains_its_own_branches(tmp_path):
    denoise = Term(reward=TinyReward(), objective=Objective(branches="denoise"))
    inversion = Term(reward=TinyReward(), objective=Objective(branches="inversion"), name="other")
    _, scores = gradients(tmp_path, denoise, inversion)
    assert [(s.branch.name, [a.name for a in s.answers]) for s in scores] == [
        ("denoise", [""]),
        ("inversion", ["other"]),
    ]


def test_spread_is_the_standard_deviation():
    values = numbers(5, 40)
    spread = Spread()
    assert spread.std == 1.0
    for part in values.split(7):
        spread.add(part)
    assert spread.std == pytest.approx(values.std(unbiased=False).item(), rel=1e-12)
    assert spread.mean == pytest.approx(values.mean().item(), rel=1e-12)


def test_normalised_rewards_weigh_alike_whatever_their_units(tmp_path):
    """Thresholds far away, so that the hinge never closes and the loss is linear in the reward."""
    far = Objective(threshold=1e3)
    runs = []
    for scale in (1.0, 50.0):
        terms = combine(
            [Term(reward=TinyReward(), objective=far), Term(reward=Scaled(scale), objective=far, name="other")]
        )
        runs.append(go(tmp_path / str(scale), 3, *terms))
    assert runs[1].spreads["other"].std == pytest.approx(50 * runs[0].spreads["other"].std)
    for name, parameter in runs[0].parameters.items():
        torch.testing.assert_close(runs[1].parameters[name], parameter, rtol=0, atol=1e-12)


def test_the_spread_is_of_earlier_updates():
    term = Term(reward=TinyReward(), objective=HPS, weight=2.0, name="a", normalised=True)
    assert term.factor({"a": Spread(4, 0.0, 4 * 0.25)}) == pytest.approx(2 / 0.5)


def test_what_is_no_number_leaves_the_spread_as_it_was():
    spread = Spread()
    expected = Spread()
    spread.add(torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")]))
    expected.add(torch.tensor([1.0, 3.0]))
    assert spread == expected


def test_spreads_resume(tmp_path):
    def terms():
        return combine([Term(reward=TinyReward(), objective=HPS), Term(reward=Scaled(3), objective=HPS, name="other")])

    straight = go(tmp_path / "straight", 4, *terms())
    go(tmp_path / "pieces", 2, *terms())
    pieces = go(tmp_path / "pieces", 2, *terms())
    assert pieces.spreads == straight.spreads and pieces.spreads["other"].count == 4 * 2 * 2 * 2
    assert all(torch.equal(pieces.parameters[name], p) for name, p in straight.parameters.items())


def test_combine_refuses():
    with pytest.raises(ValueError, match='Two rewards are called "a"'):
        combine(
            [Term(reward=TinyReward(), objective=HPS, name="a"), Term(reward=TinyReward(), objective=HPS, name="a")]
        )
    with pytest.raises(ValueError, match="none trains"):
        combine([Term(reward=TinyReward(), objective=HPS, weight=0.0)])


def test_one_reward_is_not_normalised():
    watcher = Term(reward=TinyReward(), objective=HPS, weight=0.0, name="watch")
    assert not combine([Term(reward=TinyReward(), objective=HPS), watcher])[0].normalised
    assert combine([Term(reward=TinyReward(), objective=HPS), Term(reward=TinyReward(), objective=HPS, name="b")])[
        0
    ].normalised


def test_every_text_of_a_run_is_announced(tmp_path):
    class Announced(TinyReward):
        known: frozenset = frozenset()

        def prepare(self, texts):
            assert len(set(texts)) == len(texts)
            self.known = frozenset(texts)

    for order in ("rotate", "random"):
        reward = Announced()
        go(tmp_path / order, 7, Term(reward=reward, objective=Objective(order=order)))
        assert {text for texts in reward.asked for row in texts for text in row} == reward.known
