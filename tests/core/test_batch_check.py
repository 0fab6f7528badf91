"""A model with which pictures come out otherwise in a batch than alone gets one at a time."""

import re

import pytest
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run.batch_check import held_against_singles
from srpo_core.run.draws import Batching
from srpo_core.run.training import Training


class Mixing(TinyFlow):
    """Whose pictures see the mean of their batch; `asked` counts its batches."""

    share = 0.2

    def __init__(self):
        super().__init__()
        self.asked = []

    def sampled_velocity(self, x, sigma, cond):
        self.asked.append(len(x))
        alone = super().sampled_velocity(x, sigma, cond)
        return alone + self.share * (alone.mean(0) - alone)


class Failing(TinyFlow):
    def sampled_velocity(self, x, sigma, cond):
        if len(x) > 1:
            raise RuntimeError("The expanded size of the tensor (6) must match\nmore")
        return super().sampled_velocity(x, sigma, cond)


class Still(Mixing):
    share = 0.0


def training(flow, **batching):
    return Training(
        flow=flow,
        decoder=TinyDecoder(),
        terms=[Term(reward=TinyReward(), objective=Objective())],
        dataset=TinyData(),
        batching=Batching(shape=SHAPE, batch=4, **batching),
    )


@pytest.mark.parametrize(
    "flow, said", [(Mixing(), r"they differ by \d+%"), (Failing(), r"it fails \(The exp.* match\)")]
)
def test_one_at_a_time_where_a_batch_differs(flow, said):
    checked = set()
    now, reason = held_against_singles(training(flow, at_once=4, sampled_at_once=2), 0, checked)
    assert (now.batching.at_once, now.batching.sampled_at_once, now.batching.batch) == (1, 1, 4)
    assert re.fullmatch(said, reason) and not checked


def test_a_model_that_agrees_is_asked_once_and_left_alone():
    flow = Still()
    checked = set()
    for _ in range(2):
        now, reason = held_against_singles(training(flow, at_once=4), 0, checked)
        assert reason is None and now.batching.at_once == 4
    assert flow.asked == [1, 1, 2]


def test_one_at_a_time_is_not_held_against_anything():
    flow = Mixing()
    assert held_against_singles(training(flow), 0, set())[1] is None and flow.asked == []
