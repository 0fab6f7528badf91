"""Decoding with gradient: exact, by strips and recomputed, in the memory it says, and plain about what is too much."""

from functools import cache

import pytest
import torch
from oracle import host_model, host_tiny_vae, host_vae, random_flux, random_tiny_vae, random_vae

from srpo_core.headless.decoder import DiffusersDecoder
from srpo_core.run.memory import LiveBytes

GB = 1e9


@pytest.fixture(scope="module")
def model(pack):
    return host_model(random_flux())


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("strip", [1, 3000, 10**9])
def test_strips_and_recomputing_change_nothing(pack, model, monkeypatch, strip, small):
    """Of one row, of some, and the whole; two different pictures, not square."""
    monkeypatch.setattr(pack("nodes.host.gradients.strips"), "STRIP", strip)
    monkeypatch.setattr(pack("nodes.host.decoder"), "SMALL", small)
    vae = random_vae((32, 64, 64, 64))
    latent = torch.randn(2, 16, 3, 5)
    theirs = DiffusersDecoder(vae, checkpointing=False).decode(latent)
    ours = pack("nodes.host.decoder").HostDecoder(host_vae(vae), model).decode(latent)
    assert relative(ours.value, theirs.value) < 1e-5
    gradient = torch.cos(9 * theirs.value)
    assert relative(ours.pull(gradient), theirs.pull(gradient)) < 1e-5


def test_the_step_is_its_three_layers(pack, monkeypatch):
    """In float64, far from zero mean, where sums of squares would cancel."""
    strips = pack("nodes.host.gradients.strips")
    monkeypatch.setattr(strips, "STRIP", 160)
    norm = torch.nn.GroupNorm(4, 8).double()
    conv = torch.nn.Conv2d(8, 6, 3, padding=1).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (100 + torch.randn(2, 8, 7, 5).double()).requires_grad_()
    plain = conv(torch.nn.functional.silu(norm(x)))
    ours = strips.NormSiluConv.apply(x, norm, conv)
    gradient = torch.randn_like(plain)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    to_x = [torch.autograd.grad(y, x, gradient)[0] for y in (ours, plain)]
    torch.testing.assert_close(*to_x, rtol=1e-9, atol=1e-9)


def test_bf16_is_as_exact_as_bf16_allows(pack, model):
    """Against fp32, by strips errs no more than the layers one by one do."""
    vae = random_vae((32, 64, 64, 64))
    latent = torch.randn(1, 16, 3, 2)
    exact = DiffusersDecoder(vae, checkpointing=False).decode(latent)
    gradient = torch.cos(9 * exact.value)
    expected = exact.pull(gradient)
    ours = pack("nodes.host.decoder").HostDecoder(host_vae(vae, torch.bfloat16), model).decode(latent)
    theirs = DiffusersDecoder(vae.to(torch.bfloat16), checkpointing=False).decode(latent)
    assert relative(ours.value, exact.value) < 1.2 * relative(theirs.value, exact.value)
    assert relative(ours.pull(gradient), expected) < 1.2 * relative(theirs.pull(gradient), expected)


@pytest.fixture(scope="module")
def flux_decoder(pack, model):
    """Of FLUX's own sizes, in bf16."""
    vae = host_vae(random_vae((128, 256, 512, 512)), torch.bfloat16)
    return pack("nodes.host.decoder").HostDecoder(vae, model)


def test_flux_vae_at_1024_fits(flux_decoder):
    assert flux_decoder.memory((1, 16, 128, 128))[0] < 3.1 * GB


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("tiny", [False, True])
def test_memory_is_what_a_decode_takes(pack, model, monkeypatch, small, tiny):
    monkeypatch.setattr(pack("nodes.host.decoder"), "SMALL", small)
    vae = host_tiny_vae(random_tiny_vae()) if tiny else host_vae(random_vae())
    decoder = pack("nodes.host.decoder").HostDecoder(vae, model)
    weights = {name: weight.clone() for name, weight in vae.first_stage_model.state_dict().items()}
    latent = torch.randn(2, 16, 12, 8)
    peak, held = decoder.memory(latent.shape)
    with LiveBytes() as count:
        decoded = decoder.decode(latent)
        assert count.held == pytest.approx(held, rel=0.02)
        decoded.pull(torch.ones_like(decoded.value))
    assert count.peak == pytest.approx(peak, rel=0.02)
    after = vae.first_stage_model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in weights.items())


def test_recomputing_takes_less(pack, flux_decoder, monkeypatch):
    module = pack("nodes.host.decoder")
    taken = []
    for small in (0, 10**6):
        monkeypatch.setattr(module, "SMALL", small)
        taken.append(flux_decoder.memory((1, 16, 128, 128))[0])
    assert taken[0] < 0.75 * taken[1]


def test_tiny_vae_recomputed_equals_diffusers(pack, model, monkeypatch):
    """TAEF1's kind. A ReLU whose input is all but zero may turn either way, hence the wider limit."""
    monkeypatch.setattr(pack("nodes.host.decoder"), "SMALL", 0)
    vae = random_tiny_vae()
    latent = torch.randn(2, 16, 6, 10)
    theirs = DiffusersDecoder(vae, checkpointing=False).decode(latent)
    ours = pack("nodes.host.decoder").HostDecoder(host_tiny_vae(vae), model).decode(latent)
    gradient = torch.cos(9 * theirs.value)
    assert relative(ours.value, theirs.value) < 1e-5
    assert relative(ours.pull(gradient), theirs.pull(gradient)) < 1e-2


def test_out_of_memory_names_a_size_that_fits(pack, flux_decoder, monkeypatch):
    import comfy.model_management

    decoder = flux_decoder
    monkeypatch.setattr(decoder, "memory", cache(decoder.memory))  # each takes seconds
    latent = torch.randn(1, 16, 96, 64)
    free = int(0.7 * decoder.memory(latent.shape)[0])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free)

    step = pack("nodes.host.gradients.strips").NormSiluConv.apply
    errors = [torch.OutOfMemoryError("CUDA out of memory")]

    def fails_once(*args):
        if errors:
            raise errors.pop()
        return step(*args)

    monkeypatch.setattr(pack("nodes.host.decoder").NormSiluConv, "apply", fails_once)
    with pytest.raises(torch.OutOfMemoryError, match="512x768 with gradient") as caught:
        decoder.decode(latent)
    width, height = (int(side) for side in str(caught.value).split("the size to ")[1].split(",")[0].split("x"))
    assert decoder.memory((1, 16, height // 8, width // 8))[0] < free
    assert decoder.memory((1, 16, int(1.2 * height) // 8, int(1.2 * width) // 8))[0] > free
