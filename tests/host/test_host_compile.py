"""A MODEL compiled as a whole, by the host's TorchCompileModel, or by blocks: trained as well, also where it fails."""

import logging

import pytest
import torch
from in_process import block_settings, new_flow
from oracle import host_model, random_flux, with_adapter

from srpo_core.run.draws import draw_noise

COND = [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 24)}]]
X = draw_noise([0], (16, 8, 8))
SIGMA = torch.tensor([0.9])


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


@pytest.fixture(scope="module")
def small(pack):
    """The compiler takes as long as a model has blocks."""
    return host_model(random_flux(num_layers=1, num_single_layers=1))


def no_compiler(*_, **__):
    raise RuntimeError("There is no compiler here.")


def update(pack, base, adapter, **use):
    """A rollout, a frozen velocity, and a velocity with the adapter's gradients, added to ones."""
    host_flow = pack("nodes.host.flow_model")
    flow = new_flow(adapter.attach(base), host_flow.Sampling(steps=2), **use)
    for parameter in adapter.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    values = [flow.rollout(X, COND, 0), flow.frozen_velocity(X, SIGMA, COND)]
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(torch.cos(X))
    return [*values, velocity.value, torch.cat([p.grad.flatten() for p in adapter.parameters.values()])]


@pytest.mark.parametrize("backend", ["eager", no_compiler])
def test_compiled_or_not_an_update_is_the_same(pack, small, caplog, backend):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    _, adapter = with_adapter(small)
    expected = update(pack, small, adapter)
    compiled = small.clone()
    set_torch_compile_wrapper(compiled, backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with caplog.at_level(logging.WARNING):
        got = update(pack, compiled, adapter)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    warnings = [record.message for record in caplog.records if "With torch.compile it failed" in record.message]
    if backend is no_compiler:
        assert len(warnings) == 1 and "There is no compiler here." in warnings[0]
    else:
        assert not warnings and torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert compiled.get_wrappers("apply_model", "torch.compile")  # of whoever else uses it


def no_backward_compiler(graph, inputs):
    """Fails at the second backward that it is asked to compile, when one block's gradients are there already."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    return aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g), bw_compiler=second_fails)(graph, inputs)


def second_fails(graph, inputs, asked=[]):  # noqa: B006
    from torch._functorch.aot_autograd import make_boxed_func

    asked.append(graph)
    if len(asked) == 2:
        no_compiler()
    return make_boxed_func(graph)


@pytest.mark.parametrize(
    "backend, use",
    [
        ("aot_eager", {"kept_blocks": 1}),
        (no_compiler, {}),
        (no_backward_compiler, {"kept_blocks": 1}),
    ],
)
def test_compiled_block_by_block(pack, base, caplog, monkeypatch, backend, use):
    """Once for each kind of block, not for each block."""
    compiled = pack("nodes.host.gradients.compiled")
    _, adapter = with_adapter(base)
    expected = update(pack, base, adapter, **use)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    second_fails.__defaults__[0].clear()
    by_backend = torch.compile(compiled.run_on_copies, backend=backend, dynamic=False)
    monkeypatch.setattr(pack("nodes.host.gradients.differentiable"), "run_compiled", by_backend)
    with caplog.at_level(logging.WARNING):
        got = update(pack, base, adapter, compiled=True, **use)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    warnings = [record.message for record in caplog.records if "With torch.compile it failed" in record.message]
    assert len(warnings) == (backend != "aot_eager")
    assert not any("forward" in vars(module) for module in base.model.diffusion_model.double_blocks.modules())


def test_blocks_whose_weights_are_elsewhere_or_of_another_type_are_not_compiled(pack):
    base = host_model(random_flux())
    differentiable = pack("nodes.host.gradients.differentiable").Differentiable(
        base.model, settings=block_settings(compiled=True)
    )
    assert differentiable.compiles(base)
    layer = base.model.diffusion_model.single_blocks[1].linear2
    layer.weight_function.append(lambda weight: weight)
    assert not differentiable.compiles(base)
    layer.weight_function.clear()
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)
    assert not differentiable.compiles(base)
