"""The noising process: every kind is a flow in other coordinates."""

import pytest
import torch

from srpo_core.algorithm.direct_align import euler_step, inject, per_sample, recover
from srpo_core.algorithm.process import Process, process_of

FLOW = Process()
LOUD_FLOW = Process(gain=8.0)
DIFFUSION = Process(decay=0.0, sigma_max=14.6)
KINDS = [FLOW, LOUD_FLOW, DIFFUSION]
SHARES = torch.tensor([0.05, 0.3, 0.75, 0.93], dtype=torch.float64)


def numbers(seed):
    return torch.randn(4, 3, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", KINDS)
def test_a_share_and_its_sigma(process):
    sigma = process.sigma(SHARES)
    torch.testing.assert_close(process.share(sigma), SHARES, rtol=0, atol=1e-15)
    torch.testing.assert_close(process.beta(sigma) / process.alpha(sigma), SHARES / (1 - SHARES), rtol=1e-12, atol=0)


def test_the_sigma_of_a_flow_is_the_share_to_the_bit():
    assert torch.equal(FLOW.sigma(SHARES), SHARES) and torch.equal(FLOW.total(SHARES), torch.ones(4).double())


@pytest.mark.parametrize("process", KINDS)
def test_injecting_is_mixing_as_the_process_does(process):
    x0 = numbers(1)
    noise = numbers(2)
    sigma = process.sigma(SHARES)
    mixed = per_sample(process.alpha(sigma), x0) * x0 + per_sample(process.beta(sigma), x0) * noise
    torch.testing.assert_close(process.state(inject(x0, noise, SHARES), sigma), mixed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", KINDS)
def test_stepping_and_recovering_are_those_of_the_process(process):
    """DDIM's step (arXiv 2010.02502, eq. 12) with the model's x0, then the known noise is taken out."""
    x0 = numbers(1)
    noise = numbers(2)
    said = numbers(3)
    low = SHARES - 0.04
    first = process.sigma(SHARES)
    last = process.sigma(low)
    x = inject(x0, noise, SHARES)
    stepped = euler_step(x, (x - said) / per_sample(SHARES, x), SHARES, low)

    state = process.state(x, first)
    implied = (state - per_sample(process.alpha(first), x) * said) / per_sample(process.beta(first), x)
    by_ddim = per_sample(process.alpha(last), x) * said + per_sample(process.beta(last), x) * implied
    torch.testing.assert_close(process.state(stepped, last), by_ddim, rtol=0, atol=1e-12)
    taken_out = (by_ddim - per_sample(process.beta(last), x) * noise) / per_sample(process.alpha(last), x)
    torch.testing.assert_close(recover(stepped, noise, low), taken_out, rtol=0, atol=1e-11)


@pytest.mark.parametrize("process", KINDS)
def test_it_is_read_from_what_a_model_mixes(process):
    def mix(sigma, noise, x0):
        return process.alpha(sigma) * x0 + process.beta(sigma) * noise

    read = process_of(mix, process.sigma_max)
    assert (read.decay, read.gain, read.sigma_max) == (process.decay, process.gain, process.sigma_max)


@pytest.mark.parametrize("mix", [lambda s, n, x: x, lambda s, n, x: x * (1 - s * s) + s * n, lambda s, n, x: n - s * x])
def test_another_process_is_refused_with_its_numbers(mix):
    with pytest.raises(ValueError, match=r"At sigma 0\.\d* a state holds .* of the picture and .* of the noise"):
        process_of(mix, 1.0)
