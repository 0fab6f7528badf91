"""What is trained: the kinds of adapters and their gradients, targets, beginning at a LoRA file, whole layers."""

import pytest
import torch
import torch.nn.functional as F
from in_process import new_adapter
from oracle import drawn_flux, host_model, random_flux
from safetensors.torch import save_file

KINDS = ["LoRA", "LoKr", "LoHa", "OFT", "full"]
SIGMA = torch.tensor([0.8])


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = numbers(1, 1, 16, 8, 8)
CONTEXT = numbers(2, 1, 6, 32)
POOLED = numbers(3, 1, 24)
DIRECTION = numbers(4, 1, 16, 8, 8)


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


@pytest.fixture(scope="module")
def half(pack):
    return host_model(random_flux(), torch.bfloat16)


@pytest.fixture
def make(pack):
    """An adapter of rank 4; with `seed` its parameters are moved, so that it counts."""

    def make(model, kind, seed=None, rank=4, alpha=2.0, **options):
        adapter = new_adapter(model, kind=kind, rank=rank, alpha=alpha, **options)
        if seed is not None:
            move(adapter, seed)
        return adapter

    return make


@torch.no_grad()
def move(adapter, seed, size=0.02):
    """A LoHa's product is of four matrices, three of them drawn large."""
    size = {"LoHa": size / 10}.get(adapter.settings.kind, size)
    for i, parameter in enumerate(adapter.parameters.values()):
        parameter.add_(size * numbers(1000 * seed + i, *parameter.shape).to(parameter))


def velocity_of(pack, model):
    flow = pack("nodes.host.flow_model").HostFlow(model, guidance=3.5)
    return flow.velocity(X, SIGMA, [[CONTEXT, {"pooled_output": POOLED}]])


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


def loaded(model, state):
    """The MODEL with a LoRA file of this content, by the host's loader."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, dict(state), 1.0, 0.0)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_nothing_at_the_start(pack, make, base, kind):
    plain = velocity_of(pack, base).value
    assert difference(velocity_of(pack, make(base, kind).attach(base)).value, plain) < 1e-5
    assert difference(velocity_of(pack, make(base, kind, seed=1).attach(base)).value, plain) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_stock_loader_gives_the_velocity_of_the_live_adapter(pack, make, base, caplog, kind):
    adapter = make(base, kind, seed=1)
    live = velocity_of(pack, adapter.attach(base)).value
    assert difference(live, velocity_of(pack, loaded(base, adapter.state_dict())).value) < 1e-5
    assert "not loaded" not in caplog.text.lower() and "ERROR" not in caplog.text


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoHa", "OFT"])
def test_one_layer_is_the_layer_with_the_weight_changed(pack, kind, bias):
    """By the adapter's own change of a weight, which autograd differentiates on another way."""
    layer = torch.nn.Linear(24, 32, bias=bias).requires_grad_(False)
    settings = pack("nodes.host.adapters.settings").AdapterSettings(kind=kind, rank=4, alpha=2.0)
    adapter = pack("nodes.host.adapters.layers").create(layer, settings, torch.float32)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in adapter.parameters() if p.requires_grad):
            parameter.add_(0.1 * numbers(i, *parameter.shape))
    x = numbers(7, 5, 24).requires_grad_()
    adapter.is_conv = False
    y = layer(x)
    live = adapter.g(y + adapter.h(x, y))
    merged = F.linear(x, adapter(layer.weight), layer.bias)
    torch.testing.assert_close(live, merged, atol=1e-5, rtol=1e-5)
    wanted = [x, *(p for p in adapter.parameters() if p.requires_grad)]
    for ours, theirs in zip(*(torch.autograd.grad(out, wanted, torch.cos(out.detach())) for out in (live, merged))):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        assert ours.abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_the_model(pack, make, base, kind):
    adapter = make(base, kind, seed=1)
    model = adapter.attach(base)
    velocity_of(pack, model).pull(DIRECTION)
    along = {
        name: p.grad + p.grad.square().mean().sqrt() * numbers(i, *p.shape)
        for i, (name, p) in enumerate(adapter.parameters.items())
    }
    step = 1e-3 / sum(a.pow(2).sum() for a in along.values()).sqrt()

    @torch.no_grad()
    def moved(factor):
        for name, parameter in adapter.parameters.items():
            parameter.add_(factor * step * along[name])

    def at(factor):
        moved(factor)
        value = (velocity_of(pack, model).value.double() * DIRECTION).sum()
        moved(-factor)
        return value

    slope = (at(1) - at(-1)) / (2 * step)
    expected = sum((p.grad.double() * along[name]).sum() for name, p in adapter.parameters.items())
    assert slope.item() == pytest.approx(expected.item(), rel=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_bf16_gets_about_the_gradient_of_fp32(pack, make, base, half, kind, precision):
    gradients = []
    for model, own in ((base, "fp32"), (half, precision)):
        adapter = make(model, kind, seed=1, precision=own)
        velocity = velocity_of(pack, adapter.attach(model))
        velocity.pull(DIRECTION)
        gradients.append(torch.cat([p.grad.float().flatten() for p in adapter.parameters.values()]))
    assert {p.dtype for p in adapter.parameters.values()} == {
        {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    }
    assert F.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_in_bf16_train_a_model_in_fp32(pack, make, base, kind):
    adapter = make(base, kind, seed=1, precision="bf16")
    velocity = velocity_of(pack, adapter.attach(base))
    velocity.pull(DIRECTION)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.bfloat16 for p in adapter.parameters.values())
    assert difference(velocity.value, velocity_of(pack, loaded(base, adapter.state_dict())).value) < 0.05


def chosen(pack, model, target):
    names = pack("nodes.host.adapters.adapter").target_layers(model.model, target)
    return {name.removeprefix("diffusion_model.") for name in names}


def test_targets_of_flux(pack, base):
    parts = ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    double = {f"double_blocks.{i}.{stream}_{part}" for i in (0, 1) for stream in ("img", "txt") for part in parts}
    fused = {f"single_blocks.{i}.linear{n}" for i in (0, 1) for n in (1, 2)}
    single = fused | {f"single_blocks.{i}.modulation.lin" for i in (0, 1)}
    assert chosen(pack, base, "double blocks") == double
    assert chosen(pack, base, "single blocks") == single
    assert chosen(pack, base, "all") == double | single
    assert chosen(pack, base, "attention") == {name for name in double if "attn" in name} | fused
    assert chosen(pack, base, "MLP") == {name for name in double if "mlp" in name} | fused


@pytest.mark.parametrize(
    "name, targets",
    [
        ("transformer_blocks.0.attn.add_q_proj", {"attention"}),
        ("transformer_blocks.0.img_mlp.net.0.proj", {"MLP"}),
        ("transformer_blocks.0.img_mod.1", set()),
        ("transformer_blocks.0.ff.net.0.proj", {"MLP"}),
        ("joint_blocks.0.x_block.adaLN_modulation.1", set()),
        ("blocks.0.self_attn.q", {"attention"}),
        ("blocks.0.cross_attn.v", {"attention"}),
        ("blocks.0.ffn.2", {"MLP"}),
        ("layers.0.attention.qkv", {"attention"}),
        ("layers.0.feed_forward.w1", {"MLP"}),
        ("double_stream_blocks.0.block.ff_i.w1", {"MLP", "double blocks"}),
        ("single_layers.0.mlp.c_fc1", {"MLP", "single blocks"}),
        ("single_blocks.0.linear1", {"attention", "MLP", "single blocks"}),
        ("blocks.0.linear1", set()),
    ],
)
def test_targets_by_names(pack, name, targets):
    module = pack("nodes.host.adapters.targets")
    assert {t for t in module.TARGETS if module.belongs(f"diffusion_model.{name}", t)} == targets | {"all"}


def test_a_target_that_the_model_has_not(pack):
    block = torch.nn.Sequential()
    block.attn = torch.nn.Linear(4, 4)
    model = torch.nn.Module()
    model.diffusion_model = torch.nn.Module()
    model.diffusion_model.blocks = torch.nn.ModuleList([block])
    with pytest.raises(ValueError, match=r'\(Module\) has no target "double blocks": choose one of all, attention\.'):
        pack("nodes.host.adapters.adapter").target_layers(model, "double blocks")


def test_whole_layers_are_those_beside_the_blocks_too(pack, make, base):
    names = {name.removeprefix("diffusion_model.") for name in make(base, "full").modules}
    beside = {"img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"}
    beside |= {f"{of}_in.{part}_layer" for of in ("time", "vector", "guidance") for part in ("in", "out")}
    assert names == chosen(pack, base, "all") | beside
    assert not {name.removeprefix("diffusion_model.") for name in make(base, "full", target="MLP").modules} & beside


def peft_lora(rank, alpha=None, where="") -> dict:
    """The content of a LoRA file as diffusers and peft write it, with q, k and v apart."""
    state = {}
    linears = {n: m for n, m in drawn_flux().named_modules() if isinstance(m, torch.nn.Linear)}
    for i, (name, layer) in enumerate(linears.items()):
        if "blocks" in name and where in name:
            state[f"transformer.{name}.lora_A.weight"] = 0.1 * numbers(2 * i, rank, layer.in_features)
            state[f"transformer.{name}.lora_B.weight"] = 0.1 * numbers(2 * i + 1, layer.out_features, rank)
            if alpha:
                state[f"transformer.{name}.alpha"] = torch.tensor(alpha)
    return state


def started(pack, adapter, base, tmp_path, state):
    """The MODEL whose adapter has begun at a file of this content."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "some.safetensors")
    pack("nodes.host.adapters.start_lora").start_at(adapter, base.model, tmp_path / "some.safetensors")
    return adapter.attach(base)


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_a_lora_begins_at_one_of_diffusers(pack, make, base, tmp_path, alpha):
    """Four slices of linear1, of rank 2 each, need rank 8; there are 10, so that some rows stay as drawn."""
    state = peft_lora(2, alpha)
    adapter = make(base, "LoRA", rank=10, alpha=7.0)
    value = velocity_of(pack, started(pack, adapter, base, tmp_path, state)).value
    assert difference(value, velocity_of(pack, loaded(base, state)).value) < 1e-5
    assert difference(value, velocity_of(pack, base).value) > 1e-2
    velocity_of(pack, adapter.attach(base)).pull(DIRECTION)
    down = adapter.parameters["diffusion_model.single_blocks.0.linear1.lora_down.weight"]
    assert not down[8:].any() and down.grad[8:].abs().min() > 0  # these learn at once


def test_a_lora_begins_at_a_part_of_the_layers_by_kohyas_names(pack, make, base, tmp_path):
    names = {"lora_unet_double_blocks_0_img_mlp_0": (1024, 256), "lora_unet_single_blocks_1_linear2": (256, 1280)}
    state = {f"{n}.lora_down.weight": numbers(1, 4, width).half() for n, (_, width) in names.items()}
    state |= {f"{n}.lora_up.weight": 0.1 * numbers(2, height, 4).half() for n, (height, _) in names.items()}
    state |= {f"{n}.alpha": torch.tensor(1.0) for n in names}
    model = started(pack, make(base, "LoRA", target="MLP"), base, tmp_path, state)
    assert difference(velocity_of(pack, model).value, velocity_of(pack, loaded(base, state)).value) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_begins_at_its_own_files(pack, make, base, tmp_path, kind):
    before = make(base, kind, seed=1)
    again = make(base, kind, seed=2)
    started(pack, again, base, tmp_path, before.state_dict())
    for name, parameter in before.parameters.items():
        torch.testing.assert_close(again.parameters[name], parameter)


LAYER = "diffusion_model.double_blocks.0.img_mlp.0"


def lora(layer=LAYER, width=256, height=1024, **more):
    matrices = {"lora_down.weight": torch.ones(4, width), "lora_up.weight": torch.ones(height, 4)}
    return {f"{layer}.{key}": tensor for key, tensor in {**matrices, **more}.items()}


@pytest.mark.parametrize(
    "kind, options, state, sentence",
    [
        ("LoRA", {}, lambda: peft_lora(2), "it needs rank 8, and the rank is 4"),
        ("LoRA", {}, lambda: lora("lora_unet_input_blocks_0"), r"nothing in it fits this model \(Flux\)"),
        ("LoRA", {}, lambda: lora(width=128), r"down is \(4, 128\) in it and \(4, 256\) here"),
        ("LoRA", {}, lambda: lora(height=512), r"up is \(512, 4\) in it and \(1024, 4\) here"),
        (
            "LoRA",
            {"target": "attention"},
            lora,
            f"changes 1 layers that are not trained here, such as {LAYER}: choose a",
        ),
        ("LoRA", {}, lambda: lora("diffusion_model.img_in"), "such as diffusion_model.img_in"),
        ("LoRA", {}, lambda: lora(dora_scale=torch.ones(1024)), "it holds DoRA or another extension"),
        ("LoRA", {}, lambda: {f"{LAYER}.diff": torch.ones(1024, 256)}, "it holds full, at which the adapter LoRA"),
        ("LoRA", {}, lambda: {f"{LAYER}.set_weight": torch.ones(1024, 256)}, 'it holds "set" values'),
        ("LoHa", {}, lora, "it holds LoRA, at which the adapter LoHa can't begin"),
        (
            "full",
            {},
            lambda: {f"{LAYER}.diff": torch.ones(1024, 128)},
            r"diff is \(1024, 128\) in it and \(1024, 256\)",
        ),
    ],
)
def test_files_that_no_run_can_begin_at(pack, make, base, tmp_path, kind, options, state, sentence):
    with pytest.raises(ValueError, match=f'begin at "some.safetensors": .*({sentence})'):
        started(pack, make(base, kind, **options), base, tmp_path, state())


@pytest.mark.parametrize(
    "rank, alpha, sentence",
    [(8, 2.0, r"w1_a is \(1536, 4\) in it and \(1536, 8\) here"), (4, 3.0, "its alpha is 2.0, here it is 3")],
)
def test_another_kinds_file_must_be_of_the_same_rank_and_alpha(pack, make, base, tmp_path, rank, alpha, sentence):
    state = make(base, "LoHa", seed=1).state_dict()
    with pytest.raises(ValueError, match=sentence):
        started(pack, make(base, "LoHa", rank=rank, alpha=alpha), base, tmp_path, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_layers_are_saved_as_a_model(pack, make, base, half, tmp_path, dtype):
    import comfy.sd
    import comfy.utils

    model = {torch.float32: base, torch.bfloat16: half}[dtype]
    plain = velocity_of(pack, model).value
    adapter = make(model, "full", seed=1)
    live = velocity_of(pack, adapter.attach(model)).value
    file = tmp_path / "model.safetensors"
    with torch.inference_mode():
        pack("nodes.host.adapters.adapter").save_model(model, adapter, file, {"srpo_updates": "3"})
        opened = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": dtype})
    saved = comfy.utils.load_torch_file(str(file))
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert len(saved) == len(model.model.diffusion_model.state_dict())
    assert difference(velocity_of(pack, opened).value, live) < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert torch.equal(velocity_of(pack, model).value, plain)
    assert torch.equal(velocity_of(pack, adapter.attach(model)).value, live)
