"""A MODEL that went through the host's TorchCompileModel: trained as well as one that did not, also where it fails."""

import logging

import pytest
import torch
from oracle import host_model, random_flux, with_adapter

from srpo_core.loop import draw_noise

COND = [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 24)}]]
X, SIGMA = draw_noise([0], (16, 8, 8)), torch.tensor([0.9])


def no_compiler(*_, **__):
    raise RuntimeError("There is no compiler here.")


def update(pack, base, adapter):
    """A rollout, a frozen velocity, and a velocity with the adapter's gradients."""
    host_flow = pack("nodes.host.flow_model")
    flow = host_flow.HostFlow(adapter.attach(base), host_flow.Sampling(steps=2))
    for parameter in adapter.parameters.values():
        parameter.grad = None
    values = [flow.rollout(X, COND, 0), flow.frozen_velocity(X, SIGMA, COND)]
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(torch.cos(X))
    return [*values, velocity.value, torch.cat([p.grad.flatten() for p in adapter.parameters.values()])]


@pytest.mark.parametrize("backend", ["aot_eager", no_compiler])
def test_compiled_or_not_an_update_is_the_same(pack, caplog, backend):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    base = host_model(random_flux())
    _, adapter = with_adapter(base)
    expected = update(pack, base, adapter)
    compiled = base.clone()
    set_torch_compile_wrapper(compiled, backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with caplog.at_level(logging.WARNING):
        got = update(pack, compiled, adapter)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    warnings = [record.message for record in caplog.records if "torch.compile failed" in record.message]
    if backend is no_compiler:
        assert len(warnings) == 1 and "There is no compiler here." in warnings[0]
    else:
        assert not warnings and torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert compiled.get_wrappers("apply_model", "torch.compile")  # of whoever else uses it
