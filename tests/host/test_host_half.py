"""Gradients through the host's models in fp16, at the sizes that they have in training, against those in fp32."""

import pytest
import torch
from in_process import new_adapter
from oracle import host_model, host_vae, random_flux, random_vae
from test_host_bases import COND, SIGMA, X

KINDS = {"LoRA": 4, "LoKr": 4, "LoHa": 4, "OFT": 8, "full": 1}  # with a rank that fits
SIZES = [1e-6, 1e-8]  # at 720x720 with a batch of 8


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def pulled_back(pack, base, kind, compute, incoming):
    """The gradients after two branches, from an adapter of random weights."""
    base.set_model_compute_dtype(compute)
    adapter = new_adapter(base, kind=kind, rank=KINDS[kind], alpha=4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    flow = pack("nodes.host.flow_model").HostFlow(adapter.attach(base), guidance=2.0)
    for sigma in (SIGMA, 1.2 * SIGMA):
        flow.velocity(X, sigma, COND).pull(incoming)
    return {name: parameter.grad for name, parameter in adapter.parameters.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_velocity(pack, kind):
    base = host_model(random_flux())
    incoming = SIZES[-1] * torch.cos(9 * X)
    right = pulled_back(pack, base, kind, torch.float32, incoming)
    found = pulled_back(pack, base, kind, torch.float16, incoming)
    for name in right:
        assert relative(found[name], right[name]) < 0.03


@pytest.mark.parametrize("small", [0, 10**6])
def test_decoder(pack, monkeypatch, small):
    """Of two samples, one of which has a gradient a thousand times smaller."""
    monkeypatch.setattr(pack("nodes.host.decoder"), "SMALL", small)
    model = host_model(random_flux())
    latent = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(3))
    exact = host_vae(random_vae())
    half = host_vae(random_vae())
    half.vae_dtype = torch.float16
    with torch.inference_mode():
        half.first_stage_model.half()
    decoder = pack("nodes.host.decoder").HostDecoder
    for size in SIZES:
        right = decoder(exact, model).decode(latent)
        found = decoder(half, model).decode(latent)
        incoming = size * torch.cos(9 * right.value) * torch.tensor([1.0, 1e-3]).view(2, 1, 1, 1)
        for ours, theirs in zip(found.pull(incoming), right.pull(incoming)):
            assert relative(ours, theirs) < 0.02
