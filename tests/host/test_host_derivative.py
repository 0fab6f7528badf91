"""The gradient's check on the host's models: no false alarm on any base or adapter, and faults are said."""

import pytest
import torch
from in_process import new_adapter, new_flow
from oracle import host_model, random_flux
from test_host_bases import COND, QUANTISED, SIGMA, STORED, X, loaded

from srpo_core.algorithm.gradient_check import SILENT, TOLERANCE, check_gradient, measure

KINDS = {"LoRA": 4, "LoKr": 4, "LoHa": 4, "OFT": 8, "full": 1}  # with a rank that fits


@pytest.fixture(scope="module")
def state(pack):
    """A FLUX in fp32, by the host's names."""
    return {k: v.clone() for k, v in host_model(random_flux()).model.diffusion_model.state_dict().items()}


def flow_of(pack, model, kind="LoRA", begun=True, precision="fp32", **options):
    adapter = new_adapter(model, kind=kind, rank=KINDS[kind], alpha=4.0, precision=precision)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(begun * 0.01 * torch.randn(parameter.shape, generator=generator))
    return new_flow(adapter.attach(model), guidance=2.0, **options)


@pytest.mark.parametrize("form", [*STORED, "fp8_matrix_mult", "scaled_fp8", *QUANTISED])
def test_every_base_passes(pack, state, tmp_path, form):
    model = loaded(state, form, tmp_path / "base.safetensors")
    rounds = form in ("fp8_matrix_mult", "convrot_w4a4")  # their input, in fp32 the most
    model.set_model_compute_dtype(torch.float32 if rounds else torch.bfloat16)
    slope = measure(flow_of(pack, model), X, SIGMA, COND)
    assert abs(slope.ratio - 1) < (TOLERANCE if rounds else 0.09) and slope.is_right and slope.their_change == 0


@pytest.mark.parametrize("compute", [torch.float32, torch.float16])
def test_every_type_that_it_computes_in_passes(pack, state, tmp_path, compute):
    model = loaded(state, "bf16", tmp_path / "base.safetensors")
    model.set_model_compute_dtype(compute)
    assert abs(measure(flow_of(pack, model), X, SIGMA, COND).ratio - 1) < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_adapter_passes_at_its_start_and_later(pack, state, tmp_path, kind, precision):
    model = loaded(state, "bf16", tmp_path / "base.safetensors")
    model.set_model_compute_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
    for begun in (False, True):
        flow = flow_of(pack, model, kind, begun, precision)
        before = {name: p.detach().clone() for name, p in flow.parameters.items()}
        slope = measure(flow, X, SIGMA, COND)
        assert abs(slope.ratio - 1) < 0.09 and slope.their_change < SILENT
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in flow.parameters.items())


def spoil_weights(flow, monkeypatch, pack):
    """Weights are others on the way back, as with a LoRA hook that is gone by then."""
    frozen = pack("nodes.host.gradients.frozen")
    weight_of = frozen.weight_of

    def other(module, like):
        found = weight_of(module, like)
        entered = found.__enter__()
        found.__exit__(None, None, None)
        if entered[0] is None:
            return frozen.contextlib.nullcontext(entered)
        return frozen.contextlib.nullcontext((2 * entered[0], entered[1]))

    monkeypatch.setattr(frozen, "weight_of", other)


def lose_a_norm(flow, monkeypatch, pack):
    """Its backward takes the deviation for a constant."""
    frozen = pack("nodes.host.gradients.frozen")
    norm = frozen._norm
    monkeypatch.setattr(frozen, "_norm", lambda m, f, x: norm(m, f, x.detach()) + (x - x.detach()))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plant", [spoil_weights, lose_a_norm])
def test_faults_in_the_way_back_are_said(pack, state, tmp_path, monkeypatch, plant, compute):
    model = loaded(state, "bf16", tmp_path / "base.safetensors")
    model.set_model_compute_dtype(compute)
    flow = flow_of(pack, model)
    plant(flow, monkeypatch, pack)
    with pytest.raises(RuntimeError, match="gradient of this model is wrong"):
        check_gradient(flow, X, SIGMA, COND)


def test_the_signature_changes_with_what_a_model_carries_and_with_the_conditioning(pack, state, tmp_path):
    import comfy.hooks
    import comfy.model_sampling

    model = loaded(state, "bf16", tmp_path / "base.safetensors")
    flow = flow_of(pack, model)
    HostFlow = pack("nodes.host.flow_model").HostFlow
    plain = flow.signature(COND)
    flow.sampled_velocity(X, SIGMA, COND)
    flow.velocity(X, SIGMA, COND).pull(X)
    assert flow.signature(COND) == plain == HostFlow(flow.patcher.clone()).signature(COND)

    def carrying(change):
        patcher = flow.patcher.clone()
        change(patcher)
        return HostFlow(patcher).signature(COND)

    def with_(**more):
        return [[COND[0][0], COND[0][1] | more]]

    changed = [
        carrying(lambda m: m.add_object_patch("model_sampling", m.get_model_object("model_sampling"))),
        carrying(lambda m: m.set_model_attn1_patch(lambda q, k, v, *_, **__: (q, k, v))),
        carrying(lambda m: m.set_model_unet_function_wrapper(lambda *_: None)),
        carrying(lambda m: m.add_wrapper("diffusion_model", lambda *_: None)),
        carrying(lambda m: m.add_patches({next(iter(m.model.state_dict())): (torch.zeros(1),)})),
        new_flow(flow.patcher, kept_blocks=2).signature(COND),
        flow.signature(with_(hooks=comfy.hooks.HookGroup())),
        flow.signature(with_(control=object())),
        flow.signature([*COND, *COND]),
    ]
    assert len({plain, *changed}) == 1 + len(changed)
