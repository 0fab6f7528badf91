"""The hacking watch: what is beyond its limit, and that a run ends there when asked to."""

import pytest
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Spread, Term
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.watch import Limits, crossed


def history(first: dict, last: dict, skipped=False) -> list[dict]:
    nothing = {key: float("nan") for key in first}
    return [first] * 4 + [nothing] * (3 if skipped else 0) + [last] * 4


def test_each_limit_has_its_sentence():
    start = {"words_gap": -0.2, "saturation": 0.5, "reward_positive/aesthetic": 0.6, "velocity_ratio": 1.0}
    end = {"words_gap": -0.05, "saturation": 0.6, "reward_positive/aesthetic": 0.5, "velocity_ratio": 1.09}
    spreads = {"aesthetic": Spread(4, 0.0, 4 * 0.05**2)}
    found = crossed(
        history(start, end), Limits(words_gap=0.1, saturation=0.1, watching=1.5, velocity=0.05), ["aesthetic"], spreads
    )
    assert found == {
        "words_gap": "the words-gap has risen by 0.15 (limit 0.1)",
        "saturation": "saturation has risen by 20% (limit 10%)",
        "velocity_ratio": "the velocity norm has risen by 9% (limit 5%)",
        "aesthetic": 'the watching reward "aesthetic" has fallen by 2 deviations (limit 1.5)',
    }


@pytest.mark.parametrize("limits", [Limits(), Limits(words_gap=0.2, saturation=0.3, watching=2.5)])
def test_within_the_limits_there_is_nothing_to_say(limits):
    start = {"words_gap": -0.2, "saturation": 0.5, "reward_positive/a": 0.6}
    end = {"words_gap": -0.05, "saturation": 0.6, "reward_positive/a": 0.5}
    assert crossed(history(start, end), limits, ["a"], {"a": Spread(4, 0.0, 4 * 0.05**2)}) == {}
    assert (
        crossed(history(end, start), Limits(words_gap=0.01, saturation=0.01), [], {}) == {}
    )  # the other way is no hacking


def test_the_scatter_of_few_pictures_is_no_rise():
    """A rise of 30 %, where single updates differ by more; the same of calmer ones is beyond its limit."""
    first = [0.2, 0.7, 0.3, 0.4]
    last = [0.3, 0.8, 0.4, 0.58]
    wild = [{"saturation": value} for value in first + last]
    calm = [{"saturation": 0.4 + (value - 0.4) / 10} for value in first]
    calm += [{"saturation": 0.52 + (value - 0.52) / 10} for value in last]
    assert crossed(wild, Limits(saturation=0.2), [], {}) == {}
    assert crossed(calm, Limits(saturation=0.2), [], {}) == {"saturation": "saturation has risen by 30% (limit 20%)"}


def test_too_few_or_skipped_updates():
    start = {"words_gap": 0.0, "saturation": 0.5}
    end = {"words_gap": 1.0, "saturation": 0.9}
    assert crossed(history(start, end)[1:], Limits(words_gap=0.1, saturation=0.1), [], {}) == {}
    assert len(crossed(history(start, end, skipped=True), Limits(words_gap=0.1, saturation=0.1), [], {})) == 2
    nothing = {"words_gap": float("nan"), "saturation": float("nan")}
    assert crossed(history(start, nothing), Limits(words_gap=0.1, saturation=0.1), [], {}) == {}


def test_a_run_ends_where_it_is_told_to(tmp_path):
    flow = TinyFlow()
    terms = [Term(reward=TinyReward(), objective=Objective())]
    run = Run(tmp_path, flow.parameters, Settings(save_every=100))
    parts = dict(flow=flow, decoder=TinyDecoder(), terms=terms, dataset=TinyData())
    train(run, Training(batching=Batching(shape=SHAPE), **parts), 10, lambda metrics: metrics["update"] == 3)
    assert run.updates == 3 == run.saved
