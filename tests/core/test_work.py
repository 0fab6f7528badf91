"""The plan of a bar: what is done after each update, against counting one by one."""

import pytest
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow

from srpo_core.run.draws import Batching
from srpo_core.run.training import Training
from srpo_core.run.work import WorkPlan, work_of


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


@pytest.mark.parametrize(
    "options, work",
    [
        ({}, 4 * (25 + 2)),
        ({"pairs": 3}, 4 * (25 + 6)),
        ({"reuse": 5}, 4 * (5 + 2)),
        ({"photo_share": 1.0}, 4 * 2),
    ],
)
def test_an_update_is_the_steps_of_its_pictures_and_its_trained_forwards(options, work):
    batching = Batching(shape=SHAPE, batch=4, **options)
    training = Training(flow=TinyFlow(), decoder=TinyDecoder(), terms=[], dataset=TinyData(), batching=batching)
    assert work_of(training, 25) == work
