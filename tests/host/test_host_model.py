"""What differentiating leaves behind (nothing), how exact it is in bf16, and what it refuses."""

import copy

import pytest
import torch
from oracle import (
    Oracle,
    host_model,
    host_tiny_vae,
    host_vae,
    random_flux,
    random_tiny_vae,
    random_vae,
    with_adapter,
)

SIGMA = torch.tensor([0.7, 0.93])
COND = [torch.randn(2, 6, 32), torch.randn(2, 24)]
X = torch.randn(2, 16, 8, 8)


def conditioning(pooled=True):
    context, y = COND
    return [[context, {"pooled_output": y} if pooled else {}]]


def gradients(flow, adapter, x=X):
    for parameter in adapter.parameters.values():
        parameter.grad = None
    flow.velocity(x, SIGMA, conditioning()).pull(torch.ones_like(x))
    return {name: p.grad.clone() for name, p in adapter.parameters.items()}


def picture(model):
    """A latent as a KSampler makes it inside a prompt."""
    import comfy.sample

    with torch.inference_mode():
        one = [[COND[0][:1], {"pooled_output": COND[1][:1]}]]
        return comfy.sample.sample(model, X[:1], 4, 1.0, "euler", "simple", one, [], torch.zeros_like(X[:1]), seed=0)


@pytest.fixture(scope="module")
def world(pack):
    base = host_model(random_flux())
    model, adapter = with_adapter(base)
    return base, model, adapter, pack("nodes.host.flow_model").HostFlow(model, guidance=3.5)


def test_a_sampler_before_changes_nothing_and_training_changes_no_picture(world):
    import comfy.model_management

    base, model, adapter, flow = world
    first = gradients(flow, adapter)
    plain = picture(base)
    trained = picture(model)
    assert not torch.equal(plain, trained)
    second = gradients(flow, adapter)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not comfy.model_management.in_training
    assert torch.equal(picture(base), plain)
    assert torch.equal(picture(model), trained)


def test_everything_is_put_back_after_an_error(world, monkeypatch):
    import comfy.model_management

    base, model, adapter, flow = world
    plain = picture(base)
    part = base.model.diffusion_model.single_blocks[1].modulation
    with monkeypatch.context() as patch:
        patch.setattr(type(part), "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            flow.velocity(X, SIGMA, conditioning())
    assert not comfy.model_management.in_training
    assert torch.equal(picture(base), plain)  # this also ejects the adapter's hooks
    assert not any("forward" in vars(module) for module in base.model.modules())


def fails(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_host_leaves_room_for_a_branch(pack, world, monkeypatch):
    import comfy.model_management

    _, model, adapter, flow = world
    asked = []
    load = comfy.model_management.load_models_gpu

    def remember(models, memory_required=0, minimum_memory_required=None, **rest):
        asked.append((memory_required, minimum_memory_required))
        return load(models, memory_required, minimum_memory_required=minimum_memory_required, **rest)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", remember)
    gradients(flow, adapter)
    own = list(asked)
    asked.clear()
    gradients(pack("nodes.host.flow_model").HostFlow(model, guidance=3.5, working=12345), adapter)
    assert asked == [(12345, 12345), (12345, None)] and own[0] != asked[0]
    model.memory_required(X.shape)  # is the host's again
    assert "memory_required" not in vars(model.model)


def test_a_used_pullback_is_computed_again(world):
    _, _, adapter, flow = world
    expected = gradients(flow, adapter)
    velocity = flow.velocity(X, SIGMA, conditioning())
    velocity.pull(torch.ones_like(X))
    for parameter in adapter.parameters.values():
        parameter.grad = None
    velocity.pull(torch.ones_like(X))
    assert all(torch.equal(expected[name], p.grad) for name, p in adapter.parameters.items())


def test_the_base_gets_no_gradient_and_the_model_is_not_copied(world):
    base, model, adapter, flow = world
    gradients(flow, adapter)
    assert model.model is base.model
    assert all(p.grad is None and p.is_inference() for p in base.model.parameters())


def test_bf16_is_as_exact_as_bf16_allows(pack):
    """Against fp64, the host in bf16 errs no more than diffusers + peft in bf16 does."""
    flux = random_flux(torch.bfloat16)
    model, adapter = with_adapter(host_model(flux, torch.bfloat16))
    ours = gradients(pack("nodes.host.flow_model").HostFlow(model, guidance=3.5), adapter)
    context, pooled = COND
    theirs = {}
    for dtype in (torch.float64, torch.bfloat16):
        oracle = Oracle(copy.deepcopy(flux), adapter, dtype)
        x = X.to(torch.float64 if dtype == torch.float64 else torch.float32)
        velocity = oracle.flow.velocity(x, SIGMA, {"context": context, "pooled": pooled})
        velocity.pull(torch.ones_like(x))
        theirs[dtype] = oracle.gradients(adapter)

    def error(got):
        exact = theirs[torch.float64]
        return sum(((got[n].double() - exact[n]).norm() / exact[n].norm()).item() for n in exact) / len(exact)

    assert error(ours) < 0.1
    assert error(ours) < 1.2 * error(theirs[torch.bfloat16])


def decoded_by_both(pack, model, vae, loaded):
    """The decoded image and the gradient at the latent, host's and diffusers': two relative errors."""
    from srpo_core.headless.decoder import DiffusersDecoder

    decoders = pack("nodes.host.decoder").HostDecoder(loaded, model), DiffusersDecoder(vae)
    ours, theirs = (decoder.decode(X[:1]) for decoder in decoders)
    pulled = [decoded.pull(torch.cos(decoded.value * 9)) for decoded in (ours, theirs)]
    return [((a - b).norm() / b.norm()).item() for a, b in ((ours.value, theirs.value), pulled)]


def test_flux_vae_decode_equals_diffusers(pack, world):
    vae = random_vae(widths=(128, 256, 512, 512))
    value, gradient = decoded_by_both(pack, world[1], vae, host_vae(vae))
    assert value < 1e-5 and gradient < 1e-4


def test_tiny_vae_decode_equals_diffusers(pack, world):
    """The toy's kind. A ReLU whose input is all but zero may turn either way, hence the wider limit."""
    vae = random_tiny_vae()
    value, gradient = decoded_by_both(pack, world[1], vae, host_tiny_vae(vae))
    assert value < 1e-5 and gradient < 1e-2


def test_refusals(pack, world):
    import comfy.model_sampling

    base, model, adapter, flow = world
    host_flow = pack("nodes.host.flow_model")
    with pytest.raises(ValueError, match="pooled"):
        flow.velocity(X, SIGMA, conditioning(pooled=False))
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        flow.velocity(X[:, :4], SIGMA, conditioning())
    epsilon = base.clone()
    discrete = type("Discrete", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS), {})
    epsilon.add_object_patch("model_sampling", discrete())
    with pytest.raises(ValueError, match="set the sampling of this Flux to EPS"):
        host_flow.HostFlow(epsilon)
    vae = host_vae(random_vae())
    vae.latent_channels = 4
    with pytest.raises(ValueError, match="4 latent channels"):
        pack("nodes.host.decoder").HostDecoder(vae, model)
