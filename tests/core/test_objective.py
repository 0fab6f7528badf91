"""The objective: words, strengths, hinge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srpo_core.algorithm.control_words import PRESETS
from srpo_core.algorithm.direct_align import recovery_slope
from srpo_core.algorithm.noise_levels import GRID, Window
from srpo_core.algorithm.objective import Objective, Strength, parse_words

HPS = Objective()
PICKSCORE = Objective(
    denoise_strength=Strength(low_noise=0.10, high_noise=0.50),
    inversion_strength=Strength(low_noise=0.60, high_noise=0.01),
)
ENDS = torch.tensor([0, GRID - 1])
rewards = st.floats(-2, 2, width=64)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "strength, low, high",
    [
        (HPS.denoise_strength, 0.10, 0.25),
        (HPS.inversion_strength, 0.30, 0.01),
        (PICKSCORE.denoise_strength, 0.10, 0.50),
        (PICKSCORE.inversion_strength, 0.60, 0.01),
    ],
)
def test_strength_runs_from_the_low_noise_end_to_the_high_noise_end(strength, low, high):
    assert strength.at(ENDS).tolist() == pytest.approx([low, high], abs=1e-12)
    index = torch.arange(GRID)
    torch.testing.assert_close(strength.at(index), low + (high - low) * index.double() / 999, rtol=0, atol=1e-12)


def test_a_strength_below_0_makes_the_own_word_lighter_but_never_turns_it_around():
    lighter = Objective(denoise_strength=Strength(low_noise=-0.4, high_noise=-0.4))
    branch, _ = Window().branches([500])
    assert lighter.relative_reward(branch, float64(2.0), float64(1.0)).tolist() == pytest.approx([0.6 * 2.0 - 1.0])
    with pytest.raises(ValueError, match="strength at low noise is -1.1"):
        Strength(low_noise=-1.1, high_noise=0.0)


def shared_bias_weight(m):
    """What both branches together make of a bias that both rewards share, for each position of the HPS window.

    The gradient of the inversion branch reaches the velocity with the opposite sign.
    """
    total = torch.zeros(len(m), dtype=torch.float64)
    for branch in Window().branches(m):
        shared = torch.zeros_like(total, requires_grad=True)
        (weight,) = torch.autograd.grad(HPS.relative_reward(branch, shared, shared).sum(), shared)
        total -= weight * recovery_slope(branch.sigma_in, branch.sigma_out).sign()
    return total


def test_shared_bias_is_punished_at_low_noise_and_rewarded_at_high_noise():
    m = list(range(1, GRID))
    weight = shared_bias_weight(m)
    assert (HPS.denoise_strength.at(ENDS) - HPS.inversion_strength.at(ENDS)).tolist() == pytest.approx(
        [-0.20, 0.24], abs=1e-7
    )
    assert weight[[0, -1]].tolist() == pytest.approx([-0.20, 0.24], abs=1e-3)
    denoise, inversion = Window().branches(m)
    expected = HPS.denoise_strength.at(denoise.grid_index) - HPS.inversion_strength.at(inversion.grid_index)
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12)
    assert (weight.diff() > 0).all()
    crossing = denoise.sigma_out[weight.abs().argmin()].item()
    assert crossing == pytest.approx(0.86, abs=0.005)


@given(st.lists(st.tuples(st.integers(1, GRID - 1), rewards, rewards), min_size=1, max_size=4))
def test_each_branch_weighs_its_own_word(samples):
    positions, positive, negative = zip(*samples)
    denoise, inversion = Window().branches(list(positions))
    for branch, strength, own, other in (
        (denoise, HPS.denoise_strength, positive, negative),
        (inversion, HPS.inversion_strength, negative, positive),
    ):
        k = [
            strength.low_noise + (strength.high_noise - strength.low_noise) * i / 999
            for i in branch.grid_index.tolist()
        ]
        expected = float64(*[(1 + k) * a - b for k, a, b in zip(k, own, other)])
        found = HPS.relative_reward(branch, float64(*positive), float64(*negative))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        hinge = float64(*[max(0.7 - r, 0) / 2 for r in expected.tolist()])
        torch.testing.assert_close(HPS.loss(branch, float64(*positive), float64(*negative)), hinge, rtol=0, atol=1e-12)


def test_rewards_above_the_threshold_have_no_gradient():
    denoise, _ = Window().branches([500, 500])
    positive = float64(0.5, 5.0).requires_grad_()
    loss = HPS.loss(denoise, positive, float64(0.5, 0.5))
    (gradient,) = torch.autograd.grad(loss.sum(), positive)
    assert loss[1] == 0 and gradient[1] == 0
    assert gradient[0].item() == pytest.approx(-(1 + 0.10 + 0.15 * 500 / 999) / 2)
    assert Objective(threshold=9.0).loss(denoise, positive, float64(0.5, 0.5))[1] > 0


def test_control_words_rotate_with_the_update():
    objective = Objective(positive=("Real", "Detail"), negative=("Painting", "Anime", "Oil"))
    texts = [objective.texts(["a cat"], update) for update in range(1, 7)]
    assert [positive for (positive,), _ in texts] == ["Detail. a cat", "Real. a cat"] * 3
    assert [negative for _, (negative,) in texts] == ["Anime. a cat", "Oil. a cat", "Painting. a cat"] * 2
    assert objective.texts(["a", "b"], 2) == (["Real. a", "Real. b"], ["Oil. a", "Oil. b"])


def test_published_words():
    assert HPS.positive == ("Natural-lighting", "Detail", "Detailed", "Real")
    assert HPS.negative == ("Concept art", "Painting", "Anime", "Flat", "Oil")
    assert HPS.threshold == 0.7


@pytest.mark.parametrize(
    "branches, trained", [("both", [True, True]), ("denoise", [True, False]), ("inversion", [False, True])]
)
def test_branches_can_be_switched_off(branches, trained):
    objective = Objective(branches=branches)
    assert [objective.trains(branch) for branch in Window().branches([500])] == trained


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(positive=()), "^There are no positive words: write at least one word, such as "),
        (dict(negative=()), "^There are no negative words: write at least one word, such as "),
        (dict(positive=("Real", " ")), "^One of the positive words is blank, .'Real', ' '.: take it out"),
        (dict(negative=("",)), "^One of the negative words is blank"),
        (dict(branches="neither"), 'branches is "neither"'),
    ],
)
def test_wrong_settings_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Objective(**wrong)


def test_words_as_people_type_them():
    assert parse_words(" Natural-lighting, Real\n\nConcept art ,\n") == ("Natural-lighting", "Real", "Concept art")
    assert parse_words("  \n, ") == ()
    assert parse_words("# what it shall become, one per line\nReal, # 1\n  # no more") == ("Real", "# 1")


def test_words_drawn_at_random_are_those_of_the_list_and_depend_on_the_update_alone():
    drawn = [Objective(order="random").words(update) for update in range(200)]
    assert {p for p, _ in drawn} == set(Objective().positive) and {n for _, n in drawn} == set(Objective().negative)
    assert drawn == [Objective(order="random").words(update) for update in range(200)]
    assert drawn != [Objective().words(update) for update in range(200)]
    with pytest.raises(ValueError, match='order is "sideways"'):
        Objective(order="sideways")


@pytest.mark.parametrize("look", PRESETS)
def test_presets_are_lists_that_pull_apart(look):
    positive, negative = PRESETS[look]
    Objective(positive=positive, negative=negative)
    words = [word.lower() for word in positive + negative]
    assert len(set(words)) == len(words) and len(positive) >= 4 and len(negative) >= 4


def test_the_preset_realism_is_the_published_one():
    assert PRESETS["realism"] == (Objective().positive, Objective().negative)
