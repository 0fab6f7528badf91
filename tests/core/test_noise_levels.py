"""The noise window, against the check values and the formulas of the paper."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srpo_core.algorithm.noise_levels import GRID, MARGIN, Window, draw_position, shift

HPS = Window()
PICKSCORE = Window(sigma_min=shift(0.4))
WINDOWS = {"HPS": HPS, "PickScore": PICKSCORE, "down to the clean image": Window(sigma_max=0.5, sigma_min=0.0)}


def branch_pair(m, sigma_max, sigma_min, n=1000, k0=100):
    """Both branches at position `m` in plain Python: (sigma_in, sigma_out, strength index) of each."""

    def grid(i):
        return sigma_max + (sigma_min - sigma_max) * i / (n - 1)

    k = min(n - m, k0, m)
    below = max(m - k, 1)
    denoise = (grid(n - min(m + k, n)), grid(n - m), m)
    inversion = (grid(n - below), grid(n - min(below + k, n)), below)
    return denoise, inversion


def test_published_windows():
    grid = HPS.grid()
    assert grid.shape == (GRID,) and grid.dtype == torch.float64
    assert grid[0].item() == pytest.approx(0.9643, abs=5e-5)
    assert grid[-1].item() == pytest.approx(0.75)
    assert PICKSCORE.grid()[-1].item() == pytest.approx(2 / 3)
    steps = torch.linspace(1, 0, 51, dtype=torch.float64)
    assert HPS.sigma_max == pytest.approx(shift(steps[5]).item()) and HPS.sigma_min == pytest.approx(shift(steps[25]))


@pytest.mark.parametrize(
    "m, denoise, inversion, weight",
    [
        (500, (0.8785, 0.8570), (0.8356, 0.8570), 0.150),
        (900, (0.9643, 0.9428), (0.9214, 0.9428), 0.375),
        (5, None, None, 0.004),
    ],
)
def test_check_values_of_the_hps_window(m, denoise, inversion, weight):
    for branch, sigmas in zip(HPS.branches([m]), (denoise, inversion)):
        if sigmas:
            assert (branch.sigma_in.item(), branch.sigma_out.item()) == pytest.approx(sigmas, abs=5.1e-5)
    assert HPS.branches([m])[0].error_gain.item() == pytest.approx(weight, abs=5e-4)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_every_position_follows_the_formula(window):
    positions = list(range(1, GRID))
    pairs = [branch_pair(m, window.sigma_max, window.sigma_min) for m in positions]
    for branch, name, rows in zip(window.branches(positions), ("denoise", "inversion"), zip(*pairs)):
        sigma_in, sigma_out, index = zip(*rows)
        assert branch.name == name
        assert branch.grid_index.tolist() == list(index)
        torch.testing.assert_close(branch.sigma_in, torch.tensor(sigma_in, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(branch.sigma_out, torch.tensor(sigma_out, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_denoise_goes_down_and_inversion_goes_up(window):
    denoise, inversion = window.branches(list(range(1, GRID)))
    assert (denoise.sigma_in > denoise.sigma_out).all()
    assert (inversion.sigma_in < inversion.sigma_out).all()
    for branch in (denoise, inversion):
        for sigma in (branch.sigma_in, branch.sigma_out):
            assert (sigma <= window.sigma_max).all() and (sigma >= window.sigma_min - 1e-12).all()


def test_branches_end_together_above_100_and_a_cell_apart_below():
    denoise, inversion = HPS.branches(list(range(1, GRID)))
    end = HPS.grid()
    m = denoise.grid_index
    assert torch.equal(denoise.sigma_out[m > 100], inversion.sigma_out[m > 100])
    torch.testing.assert_close(denoise.error_gain[m > 100], inversion.error_gain[m > 100], rtol=0, atol=1e-12)
    assert torch.equal(inversion.sigma_out[m <= 100], end[GRID - m[m <= 100] - 1])
    assert (inversion.error_gain[m <= 100] > denoise.error_gain[m <= 100]).all()


@given(st.lists(st.integers(1, GRID - 1), min_size=1, max_size=5))
def test_a_batch_is_its_samples(positions):
    for i, together in enumerate(HPS.branches(positions)):
        alone = [HPS.branches([m])[i] for m in positions]
        for field in ("sigma_in", "sigma_out", "grid_index", "error_gain"):
            assert torch.equal(getattr(together, field), torch.cat([getattr(branch, field) for branch in alone]))


def test_shift():
    assert (shift(0.0), shift(1.0)) == (0.0, 1.0)
    assert shift(0.3, a=1.0) == pytest.approx(0.3)
    assert shift(0.5, a=3.0) == pytest.approx(0.75)
    assert shift(shift(0.37, a=3.0), a=1 / 3) == pytest.approx(0.37)


def test_positions_are_drawn_uniformly_with_both_ends():
    drawn = [draw_position(seed) for seed in range(20_000)]
    assert drawn == [draw_position(seed) for seed in range(20_000)]
    assert (min(drawn), max(drawn)) == (MARGIN, GRID - MARGIN) == (5, 995)
    tenths = torch.histc(torch.tensor(drawn, dtype=torch.float64), bins=10)
    assert (tenths / len(drawn) - 0.1).abs().max() < 0.01


@pytest.mark.parametrize("sigma_max", [1.0, 1.2, float("nan")])
def test_pure_noise_is_refused(sigma_max):
    with pytest.raises(ValueError, match="sigma_max is .* below 1"):
        Window(sigma_max=sigma_max, sigma_min=0.5)


@pytest.mark.parametrize("sigma_max, sigma_min", [(0.5, 0.5), (0.5, 0.7), (0.5, -0.1), (0.5, float("nan"))])
def test_empty_or_reversed_windows_are_refused(sigma_max, sigma_min):
    with pytest.raises(ValueError, match="is empty"):
        Window(sigma_max=sigma_max, sigma_min=sigma_min)


@pytest.mark.parametrize("positions", [[0], [GRID], [500, -1]])
def test_positions_outside_the_window_are_refused(positions):
    with pytest.raises(ValueError, match=r"must lie in 1\.\.999"):
        HPS.branches(positions)


# The levels of few steps


SCHNELL = Window(sigma_max=0.9, sigma_min=0.5, levels=(0.75, 0.5))


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_steps_from_a_level_are_the_grid_s(window):
    """Wherever a branch of the grid has its whole width."""
    for which, positions in ((0, [100, 101, 500, 900]), (1, [200, 333, 900])):
        expected = window.branches(positions)[which]
        found = window.steps_from(expected.sigma_in)[which]
        assert found.name == expected.name and torch.equal(found.grid_index, expected.grid_index)
        torch.testing.assert_close(found.sigma_out, expected.sigma_out, rtol=0, atol=1e-12)


def test_the_model_is_asked_at_the_levels_alone():
    """Both branches begin there; by hand: a tenth of 0.4 is 100 of 999 cells."""
    positions = list(range(1, GRID))
    denoise, inversion = SCHNELL.branches(positions)
    half = torch.tensor(positions) < 500.5
    expected = torch.where(half, 0.5, 0.75).double()
    assert torch.equal(denoise.sigma_in, expected) and torch.equal(inversion.sigma_in, expected)
    width = 0.4 * 100 / 999
    torch.testing.assert_close(denoise.sigma_out, expected - width, rtol=0, atol=1e-12)
    torch.testing.assert_close(inversion.sigma_out, expected + width, rtol=0, atol=1e-12)
    assert set(denoise.grid_index.tolist()) == {1, 525} and set(inversion.grid_index.tolist()) == {1, 625}


def test_levels_are_drawn_alike():
    window = Window(sigma_max=0.96, sigma_min=0.1, levels=(0.2, 0.9, 0.5))
    drawn = window.branches([draw_position(seed) for seed in range(3000)])[0].sigma_in.tolist()
    assert drawn == window.branches([draw_position(seed) for seed in range(3000)])[0].sigma_in.tolist()
    assert all(abs(drawn.count(level) / 3000 - 1 / 3) < 0.03 for level in window.levels)


@given(st.floats(1e-6, 1 - 1e-6))
def test_no_step_leads_out_of_the_noise_levels(sigma):
    for window in (HPS, Window(sigma_max=0.999, sigma_min=0.0)):
        denoise, inversion = window.steps_from(torch.tensor([sigma], dtype=torch.float64))
        assert 0 <= denoise.sigma_out < sigma < inversion.sigma_out < 1
        assert inversion.error_gain <= 1 + 1e-9


@pytest.mark.parametrize("levels", [(1.0,), (0.5, 0.0), (float("nan"),)])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="trained levels are .* between 0 and 1"):
        Window(levels=levels)
