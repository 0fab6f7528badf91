"""What a model can't be trained with is said in a sentence whose diagnosis and advice are true."""

import re
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from differences import CHROMA, FLUX, FLUX2, QWEN, adapted, compare, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SIGMA = torch.tensor([0.85])
X = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(5))


def prompt(width=32, pooled=24, **more):
    generator = torch.Generator().manual_seed(2)
    pooled = torch.randn(1, pooled, generator=generator) if pooled else None
    return [[torch.randn(1, 6, width, generator=generator), {"pooled_output": pooled, "guidance": 3.5} | more]]


@pytest.fixture(scope="module")
def model(pack):
    """By the name of its class."""
    import comfy.supported_models as kinds

    made = {}
    configs = {"Flux": FLUX, "Chroma": CHROMA, "Flux2": FLUX2, "QwenImage": QWEN}

    def get(name):
        if name not in made:
            made[name] = small_model(getattr(kinds, name), configs[name])
        return made[name]

    return get


@pytest.fixture
def flow(pack, model):
    return pack("nodes.host.flow_model").HostFlow(adapted(model("Flux"))[0])


def said(ask, *args) -> str:
    with pytest.raises(ValueError) as raised:
        ask(*args)
    return str(raised.value)


@pytest.mark.parametrize(
    "name, kind, target, x",
    [
        ("Chroma", "LoRA", "all", X),
        ("Chroma", "LoRA", "attention", X),
        ("Chroma", "full", "all", X),
        ("Flux2", "LoRA", "all", torch.cat([X] * 8, 1)),
        ("Flux2", "full", "all", torch.cat([X] * 8, 1)),
    ],
)
def test_modulations_that_reach_blocks_inside_of_objects(model, name, kind, target, x):
    step, scale = {"LoRA": (0.001, 0.05), "full": (3e-4, 6e-4)}[kind]
    trained, adapter = adapted(model(name), kind, target, scale)
    ours, right = compare(trained, adapter, prompt(pooled=None), x, step=step)
    assert ours == pytest.approx(right, rel=3e-3)


@dataclass
class Modulation:
    scale: torch.Tensor


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


CARRIERS = {
    "tuple": lambda t: (t,),
    "list in a dict": lambda t: {"a": [t]},
    "dataclass": Modulation,
    "object with slots": Slotted,
    "objects in a tuple": lambda t: ((Modulation(Slotted(t)), None),),
    "function": lambda t: lambda: t,
    "partial": lambda t: partial(print, t),
    "method": lambda t: Modulation(t).__repr__,
    "default argument": lambda t: lambda value=t: value,
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_gradient_reaches_blocks_inside_of_anything(pack, carrier):
    weight = torch.tensor(2.0, requires_grad=True)
    x = torch.tensor([1.0, 3.0])
    factor = weight * torch.tensor([5.0, 7.0])

    def block(x, _, hidden):
        return x * factor

    module = pack("nodes.host.gradients.differentiable")
    block = module._checkpointed(block, trained=False, offload=False, state=module._OpenState())
    for _ in range(2):
        x = block(x, 0, CARRIERS[carrier](factor))
    x.sum().backward()
    assert weight.grad.item() == pytest.approx(2 * 2 * (25 * 1 + 49 * 3))


def test_what_has_no_end_counts_as_a_hidden_gradient(pack, monkeypatch):
    differentiable = pack("nodes.host.gradients.differentiable")
    assert not differentiable._hides_gradient([{"a": [torch.ones(1)]}])
    assert differentiable._hides_gradient([[float(i), [i]] for i in range(12_000)])


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(start=st.floats(0, 0.95), length=st.floats(0.01, 1), sigma=st.floats(0.05, 1))
def test_a_conditioning_that_is_not_in_use(flow, start, length, sigma):
    end = min(start + length, 1.0)
    sampling = flow.patcher.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(percent)) for percent in (start, end))
    cond = prompt(start_percent=start, end_percent=end)
    sigma = torch.tensor([sigma])
    if last <= sigma <= first:
        assert flow.velocity(X, sigma, cond).value.isfinite().all()
    else:
        text = said(flow.velocity, X, sigma, cond)
        assert f"not in use at sigma {sigma.item():.3f}" in text
        assert f"to {last:.3f}" in text and "grad_fn" not in text


def test_a_model_that_is_not_asked(pack, flow, model):
    assert "empty" in said(flow.velocity, X, SIGMA, [])
    assert "strength" in said(flow.velocity, X, SIGMA, prompt(strength=0.0))
    plain = pack("nodes.host.flow_model").HostFlow(model("Flux"))
    assert "not in use" in said(plain.velocity, X, SIGMA, prompt(start_percent=0.5, end_percent=1.0))
    assert plain.velocity(X, SIGMA, prompt()).value.any()


def test_one_conditioning_of_several_is_enough(flow):
    late = prompt(start_percent=0.5, end_percent=1.0)
    both = flow.velocity(X, SIGMA, prompt() + late).value
    assert torch.equal(both, flow.velocity(X, SIGMA, prompt()).value)


def test_a_range_that_ends_between_the_pictures_of_a_batch(flow):
    cond = prompt(start_percent=0.0, end_percent=0.3)
    x = torch.cat([X, X])
    middle = float(flow.patcher.get_model_object("model_sampling").percent_to_sigma(0.3))
    around = torch.tensor([middle + 0.05, middle - 0.05])
    assert "at_once 1" in said(flow.velocity, x, around, cond)
    flow.velocity(x, torch.tensor([0.99, middle + 0.01]), cond).pull(x)


def test_an_adapter_that_takes_no_part(pack, model):
    trained = adapted(model("Flux"), target="double blocks")[0]
    trained.set_model_patch_replace(lambda arguments, _: arguments, "dit", "double_block", 0)
    flow = pack("nodes.host.flow_model").HostFlow(trained)
    assert "another target" in said(flow.velocity, X, SIGMA, prompt())


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["Flux", "Flux2", "Chroma"]), width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_a_size_that_is_recommended_is_taken(pack, model, name, width, height):
    latent_shape = pack("nodes.host.fitting").latent_shape
    if width % 16 == 0 and height % 16 == 0:
        _, rows, columns = latent_shape(model(name), width, height)
        assert width / columns == height / rows in (8, 16)
    else:
        text = said(latent_shape, model(name), width, height)
        advised = re.search(r"choose (\d+)x(\d+)\.$", text)
        latent_shape(model(name), *map(int, advised.groups()))


@pytest.mark.parametrize("name", ["Flux", "Flux2", "Chroma"])
def test_the_default_size_is_taken(pack, model, name):
    pack("nodes.host.fitting").latent_shape(model(name), 720, 720)


@pytest.mark.parametrize("patch, multiple", [(1, 8), (2, 16), ([1, 2, 2], 16), ((1, 4, 4), 32), (None, 16)])
def test_the_size_of_a_token(pack, model, monkeypatch, patch, multiple):
    monkeypatch.setattr(model("Flux").model.diffusion_model, "patch_size", patch)
    latent_shape = pack("nodes.host.fitting").latent_shape
    latent_shape(model("Flux"), multiple * 3, multiple * 5)
    assert f"multiples of {multiple}" in said(latent_shape, model("Flux"), multiple * 3, multiple * 5 + 4)


@pytest.mark.parametrize("prediction", ["EPS", "V_PREDICTION", "X0", "EDM", "IMG_TO_IMG_FLOW", "COSMOS_RFLOW"])
def test_a_flux_with_another_sampling_is_not_told_to_load_flux(pack, model, prediction):
    import comfy.model_sampling as sampling

    changed = model("Flux").clone()
    kind = type("ModelSamplingAdvanced", (sampling.ModelSamplingDiscrete, getattr(sampling, prediction)), {})
    changed.add_object_patch("model_sampling", kind())
    text = said(pack("nodes.host.flow_model").HostFlow, changed)
    assert f"Flux to {prediction}" in text and "take that node" in text and "load" not in text


def test_latents_of_videos_have_one_frame(pack, model):
    fitting = pack("nodes.host.fitting")
    qwen = model("QwenImage")
    assert fitting.latent_shape(qwen, 720, 720) == (16, 1, 90, 90)
    fitting.check_latent(qwen, torch.zeros(1, 16, 1, 8, 8))
    for shape in ((1, 16, 8, 8), (1, 16, 2, 8, 8)):
        text = said(fitting.check_latent, qwen, torch.zeros(shape))
        assert str(shape) in text and "(batch, 16, 1, height / 8, width / 8)" in text and "of one frame" in text


def test_sound_has_no_pictures(pack, model, monkeypatch):
    qwen = model("QwenImage").clone()
    monkeypatch.setattr(qwen.get_model_object("latent_format"), "latent_dimensions", 1, raising=False)
    for ask in (
        pack("nodes.host.flow_model").HostFlow,
        partial(pack("nodes.host.fitting").latent_shape, width=1, height=1),
    ):
        text = said(ask, qwen)
        assert "QwenImage has latents of 3 dimensions" in text and "sound" in text


@pytest.mark.parametrize("width, pooled", [(48, 24), (4096, 24), (32, 8), (32, 20)])
def test_another_text_encoder(pack, flow, width, pooled):
    host_flow = pack("nodes.host.flow_model")
    sampling = host_flow.HostFlow(flow.patcher, host_flow.Sampling(steps=1))
    wrong = width if width != 32 else pooled
    right = 32 if width != 32 else 24
    for ask in (
        lambda: flow.velocity(X, SIGMA, prompt(width, pooled)),
        lambda: sampling.rollout(X, prompt(width, pooled), 0),
    ):
        text = said(ask)
        assert f"{wrong} wide" in text and f"takes {right}" in text and "text encoders" in text


def test_another_error_is_no_matter_of_the_text_encoder(flow, monkeypatch):
    layer = flow.patcher.model.diffusion_model.final_layer
    monkeypatch.setattr(type(layer), "forward", lambda self, x, *_: x @ x)
    with pytest.raises(RuntimeError, match="Expected size"):
        flow.velocity(X, SIGMA, prompt())


def test_hooks_where_weights_are_streamed(flow, monkeypatch):
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    monkeypatch.setattr(flow.patcher, "is_dynamic", lambda: True)
    assert "--disable-dynamic-vram" in said(flow.velocity, X, SIGMA, prompt(hooks=hooks))
