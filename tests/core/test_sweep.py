"""The recovery sweep: held against training's own branches, stages and numbers, and its picture's very pixels."""

import math

import numpy as np
import pytest
import torch
from tiny_world import SHAPE, TinyDecoder, TinyFlow, TinyReward, numbers

from srpo_core.algorithm.direct_align import inject
from srpo_core.algorithm.noise_levels import Branch, Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Noised, one_step_recover, score_recovered
from srpo_core.algorithm.sweep import Question, denoise_branch, recover_level, swept_sigmas
from srpo_core.algorithm.terms import Term
from srpo_core.report.sheet import MARGIN
from srpo_core.report.sweep import make_sweep
from srpo_core.report.sweep_picture import CELL, GAP, LABEL, SHADE, draw_sweep

X0 = numbers(1, 1, *SHAPE)
NOISE = numbers(2, 1, *SHAPE)
COND = torch.tensor([0.3], dtype=torch.float64)
PROMPT = "a red circle"
WINDOWS = {
    "published": Window(),
    "to the clean end": Window(sigma_max=0.5, sigma_min=0.0),
    "narrow": Window(sigma_max=0.9, sigma_min=0.899),
    "nearly all": Window(sigma_max=0.9999, sigma_min=0.01),
}


class Exact(TinyFlow):
    """A model that is never wrong about this picture."""

    def forward(self, x, sigma, cond, frozen=False):
        return NOISE - X0


class Off(Exact):
    """Wrong by one everywhere."""

    def forward(self, x, sigma, cond, frozen=False):
        return NOISE - X0 - 1


def question(reward=None, **objective):
    return Question(term=Term(reward=reward or TinyReward(), objective=Objective(**objective)), prompt=PROMPT, seed=5)


def swept(flow=None, window=WINDOWS["published"], count=6, asked=None, decoder=None, **options):
    options = {"cond": COND, "window": window, "count": count, "question": asked, **options}
    return make_sweep(flow or TinyFlow(), decoder or TinyDecoder(), X0, NOISE, **options)


def close(value, expected, atol=1e-12):
    torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected), rtol=0, atol=atol, check_dtype=False)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("count", [4, 9, 16])
def test_levels_lie_above_in_and_below_the_window(window, count):
    sigmas = swept_sigmas(window, count)
    assert len(sigmas) == count
    assert all(1 > a > b > 0 for a, b in zip(sigmas, sigmas[1:]))
    assert sigmas[0] > window.sigma_max == sigmas[1]
    inside = [sigma for sigma in sigmas if window.sigma_min <= sigma <= window.sigma_max]
    assert len(inside) >= max(2, count // 2)
    if window.sigma_min:
        assert inside[-1] == window.sigma_min > sigmas[-1]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("room", [0.0, 1e-3, 0.02])
def test_no_level_is_noisier_than_the_model_s_noisiest(window, room):
    """As of SDXL, whose noisiest state is 0.936 noise; a window may begin there."""
    noisiest = window.sigma_max + room
    sigmas = swept_sigmas(window, 9, noisiest)
    assert len(sigmas) == 9 and all(a > b > 0 for a, b in zip(sigmas, sigmas[1:]))
    assert (sigmas[0] == window.sigma_max) if room == 0 else (window.sigma_max < sigmas[0] < noisiest)
    assert window.sigma_max in sigmas


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="count is 3: give at least 4"):
        swept_sigmas(Window(), 3)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_the_steps_are_training_s_own(window):
    """Wherever training's denoise branch has its whole width."""
    positions = [100, 101, 500, 733, 900]
    trained = window.branches(positions)[0]
    for i, position in enumerate(positions):
        branch = denoise_branch(window, trained.sigma_in[i].item())
        close(branch.sigma_out[0], trained.sigma_out[i])
        assert (branch.name, branch.grid_index.item()) == ("denoise", position)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_an_exact_model_gives_the_picture_back_at_every_level(window):
    for sigma in swept_sigmas(window, 16):
        level = recover_level(Exact(), COND, X0, NOISE, branch=denoise_branch(window, sigma))
        close(level.noised, inject(X0, NOISE, level.branch.sigma_in))
        close(level.plain, X0, 1e-11)
        close(level.recovered, X0, 1e-11)


def test_of_an_error_plain_prediction_lets_sigma_through_and_the_prior_its_gain():
    for sigma in swept_sigmas(Window(), 9):
        branch = denoise_branch(Window(), sigma)
        level = recover_level(Off(), COND, X0, NOISE, branch=branch)
        close(level.plain - X0, torch.full_like(X0, sigma))
        close(level.recovered - X0, torch.full_like(X0, branch.error_gain.item()))
        assert branch.error_gain < 0.6 * sigma


def test_the_numbers_are_a_training_step_s_own():
    sweep = swept(asked=question(), gradient=True)
    flow = TinyFlow()
    for i, level in enumerate(sweep.levels):
        for row, sigma_out in enumerate((torch.zeros(1, dtype=torch.float64), level.branch.sigma_out)):
            branch = Branch("denoise", level.branch.sigma_in, sigma_out, level.branch.grid_index)
            noised = Noised(X0, NOISE, (branch, branch), (5,))
            recovered = one_step_recover(flow, COND, noised, branch)
            score = score_recovered(recovered, branch, TinyDecoder(), [question().term], prompts=[PROMPT], update=1)
            (answer,) = score.answers
            close((level.plain, level.recovered)[row], recovered.value)
            close(sweep.rewards[:, row, i], torch.cat([answer.positive, answer.negative]))
            close(sweep.gaps[row, i], answer.positive[0] - answer.negative[0])
            close(sweep.gradients[row, i], score.gradient.norm())
            close((sweep.plain, sweep.recovered)[row][i].image, score.image[0], 1e-6)
    assert (sweep.gradients > 0).all()


def test_the_words_are_those_of_the_first_update():
    reward = TinyReward()
    swept(asked=question(reward))
    assert {row[0] for texts in reward.asked for row in texts} == {f"Detail. {PROMPT}", f"Painting. {PROMPT}"}


def test_without_gradient_the_answers_are_the_same():
    with_gradient, without = (swept(asked=question(), gradient=gradient) for gradient in (True, False))
    close(without.rewards, with_gradient.rewards)
    assert with_gradient.has_gradients and not without.has_gradients
    assert [view.gradient for view in (*without.plain, *without.recovered)] == [None] * 12


def test_the_model_is_done_before_the_decoder_begins():
    order = []

    class Flow(TinyFlow):
        def sampled_velocity(self, *given):
            order.append("model")
            return super().sampled_velocity(*given)

    class Decoder(TinyDecoder):
        def decode(self, latent):
            order.append("decoder")
            return super().decode(latent)

    heard = []
    swept(Flow(), decoder=Decoder(), count=5, on_progress=lambda: heard.append(len(order)))
    assert order == ["model"] * 5 + ["decoder"] * 16
    assert heard == list(range(1, 22))


def test_distance_is_of_the_latents():
    sweep = swept(Off())
    expected = X0.new_ones(1) * X0.numel() ** 0.5 / X0.norm()
    gains = torch.cat([level.branch.error_gain for level in sweep.levels])
    close(sweep.distances, torch.stack([torch.tensor(sweep.sigmas, dtype=torch.float64), gains]) * expected)


def test_the_summary_tells_inside_from_outside():
    sweep = swept(asked=question(), gradient=True)
    inside = [1, 2, 3]
    assert [i for i, trained in enumerate(sweep.trained) if trained] == inside
    mean = sweep.gaps[1][inside].mean().item()
    rest = sweep.gaps[1][[0, 4, 5]].mean().item()
    close([sweep.inside(sweep.gaps[1]), sweep.outside(sweep.gaps[1])], [mean, rest])
    text = sweep.summary()
    assert "0.9643 to 0.7500 of noise, holds 3 of these 6" in text
    plain, recovered = (f"{row[inside].mean().item():.2f}" for row in sweep.distances)
    assert f"by {plain} of its size, recovery with the noise prior by {recovered} (means)" in text
    assert f"recovered {mean:+.2f}"[:-1] in text and f"and {rest:+.2f}"[:-1] in text
    assert f"norm {sweep.gradients[1][inside].mean():.3g} in the window" in text


def test_without_a_reward_the_summary_is_of_pictures_alone():
    text = swept().summary()
    assert "clean latent" in text and "ords-gap" not in text and "radient" not in text


def test_a_threshold_that_is_met_everywhere_is_told():
    sweep = swept(asked=question(threshold=-50.0), gradient=True)
    assert not sweep.gradients.any()
    assert "0 everywhere: the relative reward is above the objective's threshold" in sweep.summary()


def test_numbers_that_are_none_are_told_and_drawn_as_gaps():
    class Broken(TinyReward):
        def one(self, image, text):
            return super().one(image, text) * (math.nan if len(self.asked) == 3 else 1)

    sweep = swept(asked=question(Broken()))
    assert sweep.rewards.isnan().sum() == 2
    assert "2 of the reward's numbers are not finite" in sweep.summary()
    draw_sweep(sweep, PROMPT)


def test_a_velocity_that_is_none_is_refused():
    class Broken(TinyFlow):
        def forward(self, x, sigma, cond, frozen=False):
            return super().forward(x, sigma, cond) * math.nan

    with pytest.raises(ValueError, match=r"velocity at 0\.9821 of noise holds NaN"):
        swept(Broken())


def test_a_reward_without_gradient_is_refused_where_one_is_wanted():
    class Rounded(TinyReward):
        def score_many(self, images, *texts):
            return super().score_many(images, *texts).detach().round()

    with pytest.raises(ValueError, match="Rounded has no gradient at the pixels"):
        swept(asked=question(Rounded()), gradient=True)
    assert swept(asked=question(Rounded())).rewards.isfinite().all()


def test_an_image_reward_s_negative_is_the_picture_with_noise():
    class Brightness:
        reads_text = False

        def score(self, images, texts):
            return images.mean((1, 2, 3))

    sweep = swept(asked=question(Brightness()))
    assert "a little noise" in sweep.words()[0]
    assert (sweep.gaps != 0).any()


def column_colours(picture, y) -> list[tuple]:
    """The background left of each column's picture, at this height."""
    return [tuple(picture[y, MARGIN + LABEL + CELL * i - GAP // 4]) for i in range((picture.shape[1] - LABEL) // CELL)]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_the_trained_columns_are_shaded_and_no_others(window):
    sweep = swept(window=window, count=5)
    picture = np.asarray(draw_sweep(sweep, PROMPT))
    shade = tuple(int(SHADE[i : i + 2], 16) for i in (1, 3, 5))
    for y in (86, 250):  # above the text, and beside a picture
        assert column_colours(picture, y) == [shade if trained else (255, 255, 255) for trained in sweep.trained]


def test_pictures_stand_in_their_columns_and_rows():
    sweep = swept(count=4)
    picture = np.asarray(draw_sweep(sweep, PROMPT)).astype(int)
    for i in range(4):
        for views in (sweep.noised, sweep.plain, sweep.recovered):
            image = (views[i].image.movedim(0, -1) * 255).round().numpy()
            enlarged = image.repeat(20, 0).repeat(20, 1)
            left = MARGIN + LABEL + CELL * i
            column = picture[:, left : left + 160]
            tops = [y for y in range(len(column) - 160) if (abs(column[y : y + 160] - enlarged) <= 1).all()]
            assert len(tops) == 1
