"""Numbers that are none, or in no range, never enter the core: they come through links, where no widget stands."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import go, state
from tiny_world import SHAPE, TinyReward

from srpo_core.algorithm.guard import Guard
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective, Strength
from srpo_core.algorithm.terms import Term
from srpo_core.checks import check_integer, check_number
from srpo_core.run.draws import Batching
from srpo_core.run.settings import Settings
from srpo_core.run.watch import Limits

NOT_FINITE = [math.nan, math.inf, -math.inf]
NO_NUMBERS = ["1", "", None, True, [1], 1j, torch.tensor(1.0)]


def numeric(kind) -> list[str]:
    return [field.name for field in fields(kind) if type(field.default) in (int, float)]


PLACES = [
    *((Settings, name) for name in numeric(Settings)),
    *((Guard, name) for name in numeric(Guard)),
    *((Limits, name) for name in numeric(Limits)),
    *((Window, name) for name in numeric(Window)),
    *((lambda **value: Batching(shape=SHAPE, **value), name) for name in numeric(Batching)),
    (lambda **value: Batching(shape=(16, *value.values(), 8)), "side"),
    (Objective, "threshold"),
    (lambda **value: Strength(**{"low_noise": 0.0, "high_noise": 0.0, **value}), "low_noise"),
    (lambda **value: Strength(**{"low_noise": 0.0, "high_noise": 0.0, **value}), "high_noise"),
    (lambda **value: Term(reward=TinyReward(), objective=Objective(), **value), "weight"),
]


@pytest.mark.parametrize("make, name", PLACES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("value", [*NOT_FINITE, *NO_NUMBERS, -(10**400)], ids=lambda value: repr(value)[:12])
def test_a_value_that_is_no_number_is_refused_in_a_sentence(make, name, value):
    with pytest.raises(ValueError, match=r"(is|from sigma_max) .*(: give|choose) ") as refused:
        make(**{name: value})
    assert len(str(refused.value)) < 250


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3)))
def test_a_check_lets_through_what_is_in_the_range_and_nothing_else(value):
    number = type(value) in (int, float) and -2 <= value <= 3
    for check, passes in ((check_number, number), (check_integer, number and type(value) is int)):
        if passes:
            check("it", value, -2, 3)
        else:
            with pytest.raises(ValueError, match="^it is .*number from -2 to 3.$"):
                check("it", value, -2, 3)


@settings(max_examples=20)
@given(
    st.builds(
        dict,
        learning_rate=st.floats(0, 1),
        weight_decay=st.floats(0, 1),
        max_gradient_norm=st.floats(1e-6, allow_infinity=False, allow_nan=False),
        ema=st.floats(0, 0.9999),
        warmup=st.integers(0, 10**30),
        cosine_to=st.integers(0, 10**30),
    )
)
def test_whatever_settings_are_taken_a_finished_update_is_finite(tmp_path_factory, chosen):
    run = go(tmp_path_factory.mktemp("run"), 2, settings=Settings(**chosen))
    assert run.updates == 2 and all(value.isfinite().all() for value in state(run).values())
