"""Numbers as tables and charts show them."""

import math

import torch

from srpo_core.report.numbers import Scale, digits_for, number


def test_a_number_is_as_short_as_it_is_clear():
    assert number(0.25, 2, "+") == "+0.25"
    assert [number(value, 1) for value in (-1.25, 3e7, math.nan, -math.inf)] == ["-1.2", "3e+07", "NaN", "-inf"]


def test_decimals_follow_from_the_spread():
    spreads = {(0.1, 0.1005): 6, (0.0, 2.0): 2, (0.0, 2000.0): 0, (0.25, math.nan): 4, (math.nan,): 0}
    assert {values: digits_for(torch.tensor(values)) for values in spreads} == spreads


def test_a_scale_is_that_of_the_finite_values():
    scale = Scale(torch.tensor([2.0, math.nan, -2.0, math.inf]))
    assert [scale.place(value, alone=0.5) for value in (-2.0, 1.0, 2.0)] == [0.0, 0.75, 1.0]
    assert math.isnan(scale.place(math.nan, alone=0.5)) and math.isnan(scale.place(math.inf, alone=0.5))
    assert Scale(torch.tensor([3.0, 3.0])).place(3.0, alone=0.5) == 0.5
