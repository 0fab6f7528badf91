"""A model with which pictures come out otherwise in a batch than alone gets one at a time."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run.batch_check import difference, held_against_singles
from srpo_core.run.draws import Batching, draws_of
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


class Drawing(Mixing):
    """Which says another thing each time."""

    share = 0.0

    def sampled_velocity(self, x, sigma, cond):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(self.asked)), dtype=torch.float64)
        return super().sampled_velocity(x, sigma, cond) + noise


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
    now, reason = held_against_singles(training(flow, at_once=4, sampled_at_once=2), range(1), checked)
    assert (now.batching.at_once, now.batching.sampled_at_once, now.batching.batch) == (1, 1, 4)
    assert re.fullmatch(said, reason) and not checked


def test_a_model_that_agrees_is_asked_once_and_left_alone():
    flow = Still()
    checked = set()
    for _ in range(2):
        now, reason = held_against_singles(training(flow, at_once=4), range(1), checked)
        assert reason is None and now.batching.at_once == 4
    assert flow.asked == [1, 1, 2]


def test_one_at_a_time_is_not_held_against_anything():
    flow = Mixing()
    assert held_against_singles(training(flow), range(1), set())[1] is None and flow.asked == []


class Unequal(TinyData):
    """Prompts of two lengths; that of each picture is its index's parity."""

    def cond_shape(self, index):
        return index % 2


def test_a_later_update_is_looked_at_where_the_first_has_no_two_alike():
    """Two prompts of two lengths an update: the first draws one of each, another two alike."""
    batching = Batching(shape=SHAPE, batch=2, at_once=2)
    data = Unequal(4)
    alike = [made for made in range(20) if len({draw.index % 2 for draw in draws_of(made, batching, data)}) == 1]
    first = next(made for made in range(20) if made not in alike)
    assert any(made > first for made in alike)
    given = replace(training(Mixing()), dataset=data, batching=batching)
    assert held_against_singles(given, range(first, first + 1), set())[1] is None
    now, reason = held_against_singles(given, range(first, 20), set())
    assert reason and now.batching.at_once == 1


def test_the_difference_is_that_of_the_worse_picture():
    flow = Mixing()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    sigma = torch.tensor([0.9, 0.4])
    cond = torch.tensor([0.1, 0.7]).double()
    alone = TinyFlow.sampled_velocity(flow, x, sigma, cond)
    off = flow.share * (alone.mean(0) - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)
    assert difference(flow, x, sigma, lambda which: cond[which]) == f"they differ by {off.max():.0%}"


def test_what_a_model_draws_is_not_blamed_on_the_batch():
    now, reason = held_against_singles(training(Drawing(), at_once=4), range(1), set())
    assert reason is None and now.batching.at_once == 4
