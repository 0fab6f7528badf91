"""Gradients through a base in each form that people load it in, against its dequantised weights in fp32.

The same weights in fp32 go through the same host, whose gradient there equals diffusers' (test_host_gradients.py).
"""

import gc
import importlib.util
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from in_process import new_flow
from oracle import host_model, random_flux, with_adapter
from safetensors.torch import save_file
from torch import nn

SIGMA = torch.tensor([0.7])
X = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
COND = [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 24)}]]
GUIDANCE = 2.0  # FLUX embeds a thousand times this in its own type: 2000 is a number of bf16, 3500 is none
STORED = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
ROTATED = {"convrot": True, "convrot_groupsize": 64}
# Of each quantised kind of the host: what its layout is told, and what the file says of a layer.
QUANTISED = {
    "float8_e4m3fn": ({"scale": "recalculate"}, {}),
    "float8_e5m2": ({"scale": "recalculate"}, {}),
    "nvfp4": ({}, {}),
    "nvfp4, smoothed": ({}, {}),
    "mxfp8": ({}, {}),
    "int8_tensorwise": ({}, {}),
    "int8_tensorwise, rotated": ({"per_channel": True, **ROTATED}, ROTATED),
    "convrot_w4a4": ({}, {}),
    "asym_w4a8_int8": ({}, {}),
}
# These quantise their input too, on a CPU as well: to 8 bits (steps of 1/127 of the largest), to fp8, or to 4 bits.
ROUNDED_INPUT = {"int8_tensorwise": 0.01, "int8_tensorwise, rotated": 0.01, "asym_w4a8_int8": 0.01}
ROUNDED_INPUT |= {"fp8_matrix_mult": 0.1, "convrot_w4a4": 0.1}


@pytest.fixture(scope="module")
def state(pack):
    """A FLUX in fp32, by the host's names."""
    return {k: v.clone() for k, v in host_model(random_flux()).model.diffusion_model.state_dict().items()}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "base.safetensors"


def load(state, file, metadata=None, **options):
    """MODEL as Load Diffusion Model makes it."""
    import comfy.sd

    save_file(state, file, metadata)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file), model_options=options)


def stored_as(state, dtype, file):
    """Plain weights of this type; those of fp8 come from a file in bf16, by the loader's weight_dtype."""
    of_file = dtype if dtype.itemsize > 1 else torch.bfloat16
    return load({k: v.to(of_file) for k, v in state.items()}, file, dtype=dtype)


def quantised(state, kind, file):
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    told, said = QUANTISED[kind]
    algorithm = kind.split(",")[0]
    stored = {}
    layers = {}
    for name, weight in state.items():
        if not is_in_blocks(name, weight):
            stored[name] = weight
            continue
        layer = name.removesuffix(".weight")
        if "smoothed" in kind:
            scale = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(7)) + 0.5
            stored[f"{layer}.pre_quant_scale"] = scale
            weight = weight / scale
        packed = QuantizedTensor.from_float(weight, QUANT_ALGOS[algorithm]["comfy_tensor_layout"], **told)
        stored |= {k: v.contiguous() for k, v in packed.state_dict(name).items()}
        layers[layer] = {"format": algorithm, **said}
    return load(stored, file, {"_quantization_metadata": json.dumps({"layers": layers})})


def scaled_fp8(state, file):
    """The older form of files with a scale to each weight."""
    stored = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in state.items():
        if is_in_blocks(name, weight):
            scale = weight.abs().max() / 448
            stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
            weight = (weight / scale).to(torch.float8_e4m3fn)
        stored[name] = weight
    return load(stored, file)


def is_in_blocks(name, tensor):
    return tensor.ndim == 2 and "_blocks." in name and "mod" not in name


def fp8_matrix_mult(state, file):
    """As with the host's flag --fast fp8_matrix_mult."""
    import comfy.ops

    return load(state, file, dtype=torch.float8_e4m3fn, custom_operations=comfy.ops.fp8_ops)


def loaded(state, form, file):
    if form in STORED:
        return stored_as(state, STORED[form], file)
    if form == "fp8_matrix_mult":
        return fp8_matrix_mult(state, file)
    return scaled_fp8(state, file) if form == "scaled_fp8" else quantised(state, form, file)


def dequantised(model, unpack=lambda layer: layer.weight):
    """The MODEL's weights in fp32, in a MODEL of their own."""
    import comfy.sd
    from comfy.quant_ops import QuantizedTensor

    plain = {}
    for name, layer in model.model.diffusion_model.named_modules():
        if getattr(layer, "weight", None) is not None:
            weight = unpack(layer)
            weight = (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight).float()
            plain[f"{name}.weight"] = weight * getattr(layer, "pre_quant_scale", torch.ones(()))
            if getattr(layer, "bias", None) is not None:
                plain[f"{name}.bias"] = layer.bias.float()
    with torch.inference_mode():
        plain = {k: v.clone() for k, v in plain.items()}
        return comfy.sd.load_diffusion_model_state_dict(plain, model_options={"dtype": torch.float32})


def pull_back(pack, model, checkpointing=True):
    """The velocity, and the gradients of an adapter on the MODEL, as one vector."""
    model, adapter = with_adapter(model)
    flow = new_flow(model, guidance=GUIDANCE, checkpointing=checkpointing)
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(torch.cos(9 * X))
    return velocity.value, torch.cat([adapter.parameters[name].grad.flatten() for name in sorted(adapter.parameters)])


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("form", [*STORED, "fp8_matrix_mult", "scaled_fp8", *QUANTISED])
def test_gradient_equals_that_of_the_dequantised_weights(pack, state, file, form):
    model = loaded(state, form, file)
    value, gradient = pull_back(pack, model)
    exact_value, exact = pull_back(pack, dequantised(model))
    allowed = ROUNDED_INPUT.get(form, 1e-6)  # the CPU computes in fp32 whatever the weights are stored in
    assert relative(value, exact_value) < allowed
    assert relative(gradient, exact) < 3 * allowed  # backward and forward both meet the rounded activations


@pytest.mark.parametrize(
    "form, compute",
    [
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8_e4m3fn", torch.bfloat16),
        ("float8_e4m3fn", torch.float16),
        ("nvfp4", torch.bfloat16),
        ("int8_tensorwise", torch.float16),
    ],
)
def test_gradient_is_as_exact_as_the_type_it_is_computed_in(pack, state, file, form, compute):
    model = loaded(state, form, file)
    model.set_model_compute_dtype(compute)
    value, gradient = pull_back(pack, model)
    exact_value, exact = pull_back(pack, dequantised(model))
    allowed = max(4 * torch.finfo(compute).eps, ROUNDED_INPUT.get(form, 0.0))
    assert relative(value, exact_value) < allowed
    assert relative(gradient, exact) < 3 * allowed


@pytest.mark.parametrize("form", QUANTISED)
def test_a_layer_that_quantises_its_input_gets_the_straight_through_gradient(pack, state, file, form):
    """As on cards that multiply the kind; nvfp4, mxfp8 and fp8 fall back to plain products on others, and on a CPU."""
    model = loaded(state, form, file)
    layer = model.model.diffusion_model.single_blocks[0].linear1
    layer._full_precision_mm = False
    dtype = torch.bfloat16 if form == "mxfp8" else torch.float32  # the CPU's product for mxfp8 knows no fp32
    weight = layer.weight.dequantize().to(dtype) * getattr(layer, "pre_quant_scale", torch.ones(())).to(dtype)
    x = torch.randn(2, 32, 256, dtype=dtype, requires_grad=True)
    with pack("nodes.host.gradients.differentiable").Differentiable(model.model).open(model):
        y = layer(x)
        gradient = torch.randn_like(y)
        y.backward(gradient)
    assert relative(y, F.linear(x, weight, layer.bias.to(dtype))) > 0.004  # it did quantise
    assert relative(x.grad, gradient @ weight) < 16 * torch.finfo(dtype).eps  # sums of 1,792 products


@pytest.mark.parametrize("form", ["fp8_e4m3fn", *QUANTISED])
def test_no_dequantised_weight_is_kept_for_the_backward(pack, state, file, form):
    model, _ = with_adapter(loaded(state, form, file))
    flow = new_flow(model, checkpointing=False)
    assert weights_kept_by(model, lambda: flow.velocity(X, SIGMA, COND)) == []


def weights_kept_by(model, forward):
    """Shapes of the blocks' weights among what autograd saves and among the tensors that are left."""
    layers = [layer for layer in model.model.diffusion_model.modules() if hasattr(layer, "in_features")]
    shapes = {shape for m in layers for shape in ((m.in_features, m.out_features), (m.out_features, m.in_features))}
    saved = []
    before = {id(t) for t in tensors()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pullback = forward()
    before |= {id(weight) for weight in model.model.parameters()}  # loading may have moved them
    left = [t for t in tensors() if id(t) not in before and t.dtype.itemsize > 1]  # packed ones have less
    assert saved and pullback
    return [tuple(t.shape) for t in saved + left if tuple(t.shape) in shapes]


def tensors():
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]


def packed_operations(**methods):
    """Operations of a pack: its linear layers hold each row as int8 with a scale, and unpack it in each forward."""
    import comfy.ops

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            weight = state_dict[f"{prefix}weight"]
            bias = state_dict.get(f"{prefix}bias")
            scale = weight.abs().amax(1, keepdim=True) / 127
            self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
            self.scale = nn.Parameter(scale, requires_grad=False)
            self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

        def unpacked(self):
            return self.weight.float() * self.scale

        def forward_comfy_cast_weights(self, x):
            return F.linear(x, self.unpacked().to(x), None if self.bias is None else self.bias.to(x))

    for name, method in methods.items():
        setattr(Linear, name, method)
    return type("Operations", (comfy.ops.manual_cast,), {"Linear": Linear})


def handed_out(layer, like):
    """As the layers of ComfyUI-GGUF do."""
    return layer.unpacked().to(like), None if layer.bias is None else layer.bias.to(like)


def unpacked(layer):
    return layer.unpacked() if hasattr(layer, "unpacked") else layer.weight


@pytest.mark.parametrize("methods", [{}, {"cast_bias_weight": handed_out}], ids=["unknown kind", "like GGUF"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_layers_of_a_pack(pack, state, file, methods, checkpointing):
    model = load(state, file, custom_operations=packed_operations(**methods))
    value, gradient = pull_back(pack, model, checkpointing)
    exact_value, exact = pull_back(pack, dequantised(model, unpacked))
    assert relative(value, exact_value) < 1e-6 and relative(gradient, exact) < 1e-6
    flow = new_flow(with_adapter(model)[0], checkpointing=checkpointing)
    assert weights_kept_by(model, lambda: flow.velocity(X, SIGMA, COND)) == []


@torch.no_grad()
def without_gradient(layer, x):
    return F.linear(x, layer.unpacked(), layer.bias)


def in_integers(layer, x):
    scale = x.detach().abs().max() / 127
    product = (x / scale).round().to(torch.int32) @ layer.weight.T.to(torch.int32)
    return product.float() * scale * layer.scale.T


@torch.library.custom_op("srpo::no_backward", mutates_args=())
def kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def without_a_formula(layer, x):
    return kernel(x, layer.unpacked())


@pytest.mark.parametrize("forward", [without_gradient, in_integers, without_a_formula])
def test_a_layer_without_gradient_is_named(pack, state, file, forward):
    import comfy.model_management

    model = load(state, file, custom_operations=packed_operations(forward_comfy_cast_weights=forward))
    with pytest.raises(ValueError, match=r"test_host_bases.*Linear pass no gradient back \(.*Load it with") as raised:
        pull_back(pack, model)
    assert raised.value.__cause__ is not None
    assert not comfy.model_management.in_training


def test_a_layer_that_needs_two_gradients_gets_both(pack):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x, gate):
            return x * gate * self.weight

    gate = Gate()
    forward = pack("nodes.host.gradients.frozen").frozen_forwards(gate)[gate]
    x = torch.ones(2, requires_grad=True)
    y = 3 * torch.ones(2)
    assert torch.equal(torch.autograd.grad(forward(x, y).sum(), x)[0], 3 * torch.ones(2))
    gradients = torch.autograd.grad(forward(x, gate=y.requires_grad_()).sum(), (x, y))
    assert torch.equal(gradients[0], 3 * torch.ones(2)) and torch.equal(gradients[1], torch.ones(2))


class Stubborn(torch.Tensor):
    """As the tensors of ComfyUI-GGUF."""

    def clone(self, *args, **kwargs):
        return self

    def detach(self):
        return self


def test_a_kind_of_tensor_that_is_its_own_clone(pack, state, file):
    model = load(state, file)
    value, gradient = pull_back(pack, model)
    with torch.inference_mode():
        for layer in model.model.diffusion_model.modules():
            if isinstance(layer, nn.RMSNorm):
                layer.weight = nn.Parameter(layer.weight.as_subclass(Stubborn), requires_grad=False)
            elif isinstance(layer, nn.Linear):
                layer.bias = nn.Parameter(layer.bias.as_subclass(Stubborn), requires_grad=False)
    got, of_stubborn = pull_back(pack, model)
    assert torch.equal(got, value) and torch.equal(of_stubborn, gradient)


@pytest.fixture
def gguf_pack(comfyui):
    """ComfyUI-GGUF, where it is installed."""
    folder = comfyui / "custom_nodes" / "ComfyUI-GGUF"
    if not folder.is_dir() or not importlib.util.find_spec("gguf"):
        pytest.skip("no ComfyUI-GGUF in this ComfyUI")
    spec = importlib.util.spec_from_file_location("gguf_pack", folder / "__init__.py")
    sys.modules["gguf_pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind, compute", [("Q8_0", torch.float32), ("Q4_0", torch.float16), ("F16", torch.float16)])
def test_gguf(pack, state, gguf_pack, tmp_path, monkeypatch, kind, compute):
    import folder_paths
    import gguf

    file = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(file, "flux")
    for name, weight in state.items():
        of_kind = gguf.GGMLQuantizationType[kind if is_in_blocks(name, weight) else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), of_kind), raw_dtype=of_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(file))
    with torch.inference_mode():
        model = gguf_pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet("base.gguf")[0]
    model.set_model_compute_dtype(compute)
    like = torch.zeros(1)
    value, gradient = pull_back(pack, model)
    exact_value, exact = pull_back(
        pack, dequantised(model, lambda m: m.cast_bias_weight(like)[0] if hasattr(m, "cast_bias_weight") else m.weight)
    )
    allowed = 4 * torch.finfo(compute).eps
    assert relative(value, exact_value) < allowed and relative(gradient, exact) < 3 * allowed
    flow = new_flow(with_adapter(model)[0], checkpointing=False)
    assert weights_kept_by(model, lambda: flow.velocity(X, SIGMA, COND)) == []


@pytest.mark.parametrize("whose", ["the whole host", "the MODEL"])
def test_an_attention_without_backward_is_not_asked(pack, state, file, monkeypatch, whose):
    """As sage's is: chosen by a flag of the host, or by a node that patches the MODEL."""
    import comfy.ldm.flux.math
    from comfy.ldm.modules.attention import attention_pytorch, wrap_attn

    def attention(q, k, v, *args, **kwargs):
        asked.append(1)
        return attention_pytorch(q.detach(), k.detach(), v.detach(), *args, **kwargs)

    asked = []
    model = load(state, file)
    value, exact = pull_back(pack, model)
    if whose == "the MODEL":
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = lambda _, *a, **k: attention(
            *a, **k
        )
    else:
        monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", wrap_attn(attention))
    flow = pack("nodes.host.flow_model")
    flow.HostFlow(model, flow.Sampling(steps=1)).rollout(X, COND, 0)
    assert asked  # in rollouts it is
    asked.clear()
    got, gradient = pull_back(pack, model)
    assert torch.equal(got, value) and torch.equal(gradient, exact) and not asked
