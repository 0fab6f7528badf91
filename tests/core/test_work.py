"""The plan of a bar: what is done after each update, against counting one by one."""

import pytest
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.baselines import DRaFTLV, FlowBP, ReFL
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching
from srpo_core.run.training import Training
from srpo_core.run.work import WorkPlan, forward_equivalents, work_of


@pytest.mark.parametrize("first", [0, 3, 4])
@pytest.mark.parametrize("updates", [1, 4, 7])
@pytest.mark.parametrize("every", [1, 4, 5])
def test_what_is_done_after_each_update_is_what_was_counted(first, updates, every):
    plan = WorkPlan(first=first, updates=updates, each=10, samples=3, every=every)
    done = 3  # before training
    assert plan.until(0) == done
    for made in range(1, updates + 1):
        done += 10 + 3 * (plan.is_due(made) or made == updates)
        assert plan.until(made) == done
    assert not plan.is_due(updates)  # the end has samples of its own


SRPO = Objective()


@pytest.mark.parametrize(
    "objectives, options, sampled, trained",
    [
        ([SRPO], {}, 25, 2),
        ([SRPO], {"pairs": 3}, 25, 6),
        ([SRPO], {"reuse": 5}, 5, 2),
        ([SRPO], {"photo_share": 1.0}, 0, 2),
        ([SRPO, Objective(branches="denoise")], {}, 25, 2),  # they share their forwards
        ([Objective(branches="inversion")], {}, 25, 1),
        ([ReFL()], {}, 25, 1),
        ([DRaFTLV()], {"pairs": 2}, 25, 4),
        ([FlowBP(), SRPO], {}, 25, 5 + 2),
    ],
)
def test_an_update_is_the_steps_of_its_pictures_and_its_trained_forwards(objectives, options, sampled, trained):
    batching = Batching(shape=SHAPE, batch=4, **options)
    terms = [Term(reward=TinyReward(), objective=objective) for objective in objectives]
    terms.append(Term(reward=TinyReward(), objective=FlowBP(), weight=0.0))  # it only watches
    training = Training(flow=TinyFlow(), decoder=TinyDecoder(), terms=terms, dataset=TinyData(), batching=batching)
    assert work_of(training, 25) == 4 * (sampled + trained)
    assert forward_equivalents(training, 25) == 4 * (sampled + 3 * trained)
