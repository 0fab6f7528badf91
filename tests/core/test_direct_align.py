"""Direct-Align's identities, for velocities, shapes and sigmas of any kind, in float64 to 1e-12."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_core.algorithm.direct_align import euler_step, inject, per_sample, recover, recovery_slope
from srpo_core.algorithm.noise_levels import GRID, Branch, Window

TOLERANCE = dict(rtol=0, atol=1e-12)


def draw(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


@st.composite
def cases(draw_from):
    """(x0, noise, velocity), (B, C, H, W) each, and both branches at B positions of some window."""
    shape = tuple(draw_from(st.integers(1, size)) for size in (4, 16, 5, 5))
    sigma_max = draw_from(st.floats(0.1, 0.98))
    window = Window(sigma_max=sigma_max, sigma_min=draw_from(st.floats(0, 0.9)) * sigma_max)
    positions = [draw_from(st.integers(1, GRID - 1)) for _ in range(shape[0])]
    return draw(shape, draw_from(st.integers(0, 2**31))), window.branches(positions)


def recovered(x0, noise, velocity, branch):
    x = inject(x0, noise, branch.sigma_in)
    return recover(euler_step(x, velocity, branch.sigma_in, branch.sigma_out), noise, branch.sigma_out)


@given(cases())
def test_recovered_is_x0_plus_or_minus_the_weighted_error(case):
    (x0, noise, velocity), branches = case
    for branch, sign in zip(branches, (1, -1)):
        error = (noise - x0) - velocity
        expected = x0 + sign * per_sample(branch.error_gain, x0) * error
        torch.testing.assert_close(recovered(x0, noise, velocity, branch), expected, **TOLERANCE)


@given(cases())
def test_an_exact_model_gives_x0_back(case):
    (x0, noise, _), branches = case
    for branch in branches:
        torch.testing.assert_close(recovered(x0, noise, noise - x0, branch), x0, **TOLERANCE)


def test_an_exact_model_gives_x0_back_at_every_sigma():
    x0, noise, _ = draw((GRID - 1, 1, 2, 2), seed=0)
    for branch in Window(sigma_max=0.98, sigma_min=0.0).branches(list(range(1, GRID))):
        torch.testing.assert_close(recovered(x0, noise, noise - x0, branch), x0, **TOLERANCE)


@given(cases())
def test_slope_is_the_derivative_and_its_size_the_weight(case):
    (x0, noise, velocity), branches = case
    velocity.requires_grad_()
    for branch, sign in zip(branches, (-1, 1)):
        (gradient,) = torch.autograd.grad(recovered(x0, noise, velocity, branch).sum(), velocity)
        slope = recovery_slope(branch.sigma_in, branch.sigma_out)
        torch.testing.assert_close(gradient, per_sample(slope, x0).expand_as(x0), **TOLERANCE)
        torch.testing.assert_close(slope, sign * branch.error_gain, **TOLERANCE)


@given(cases())
def test_a_batch_is_its_samples(case):
    (x0, noise, velocity), branches = case
    for branch in branches:
        alone = [
            recovered(
                x0[i : i + 1],
                noise[i : i + 1],
                velocity[i : i + 1],
                Branch(
                    branch.name, branch.sigma_in[i : i + 1], branch.sigma_out[i : i + 1], branch.grid_index[i : i + 1]
                ),
            )
            for i in range(len(x0))
        ]
        torch.testing.assert_close(recovered(x0, noise, velocity, branch), torch.cat(alone), rtol=0, atol=0)


@settings(max_examples=30)
@given(cases())
def test_plain_one_step_prediction_makes_a_larger_error(case):
    """Recovering from a step all the way to sigma 0 is ReFL's prediction, `x0 + sigma_in e`."""
    (x0, noise, velocity), (denoise, _) = case
    clean = torch.zeros_like(denoise.sigma_out)
    plain = recovered(x0, noise, velocity, Branch("denoise", denoise.sigma_in, clean, denoise.grid_index))
    error = (noise - x0) - velocity
    torch.testing.assert_close(plain, x0 + per_sample(denoise.sigma_in, x0) * error, **TOLERANCE)
    assert (denoise.error_gain <= denoise.sigma_in + 1e-12).all()


def test_inject_runs_from_clean_to_noise():
    x0, noise, _ = draw((3, 2, 4, 4), seed=1)
    sigma = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mixed = inject(x0, noise, sigma)
    assert torch.equal(mixed[0], x0[0]) and torch.equal(mixed[2], noise[2])
    torch.testing.assert_close(mixed[1], 0.75 * x0[1] + 0.25 * noise[1], **TOLERANCE)


def test_sigmas_take_the_type_of_the_latent():
    """float64 sigmas must not turn an fp32 model's latents into float64."""
    x0 = torch.zeros(2, 1, 2, 2)
    branch, _ = Window().branches([5, 900])
    assert recovered(x0, x0, x0, branch).dtype == torch.float32
