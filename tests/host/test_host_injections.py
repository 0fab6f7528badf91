"""Other injections on the layers of an adapter: a LoRA in bypass mode, and whatever packs put there."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import new_adapter
from oracle import host_model, random_flux
from test_host_adapters import DIRECTION, LAYER, difference, loaded, move, numbers, velocity_of

LINEAR = "diffusion_model.img_in"  # beside the blocks, where an adapter does not sit


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


@pytest.fixture(scope="module")
def adapter(pack, base):
    made = new_adapter(base, rank=4, alpha=2.0)
    move(made, 1)
    return made


def bypass(model, state):
    """The MODEL with the LoRA as the core's "Load LoRA (Bypass)" puts it there."""
    import comfy.sd

    with torch.inference_mode():
        state = {key: tensor.clone() for key, tensor in state.items()}
        return comfy.sd.load_bypass_lora_for_models(model, None, state, 1.0, 0.0)[0]


class Scaled:
    """A pack's injection, by the usual means: it keeps a layer's forward, and puts back what it kept."""

    def __init__(self, layer, factor):
        self.layer = layer
        self.factor = factor
        self.kept = None

    def inject(self, _):
        self.kept = self.layer.forward
        self.layer.forward = self.forward

    def eject(self, _):
        if self.kept is not None:
            self.layer.forward = self.kept
            self.kept = None

    def forward(self, x, *args, **kwargs):
        with torch.inference_mode():
            factor = torch.tensor(self.factor)  # an inference tensor, as nodes make them
        return self.kept(x, *args, **kwargs) * factor


def with_scaled(model, key, name, factor):
    from comfy.patcher_extension import PatcherInjection

    model = model.clone()
    scaled = Scaled(model.model.get_submodule(name), factor)
    model.set_injections(key, [PatcherInjection(scaled.inject, scaled.eject)])
    return model


def gradients(adapter, velocity):
    for parameter in adapter.parameters.values():
        parameter.grad = None
    velocity.pull(DIRECTION)
    return {name: parameter.grad.clone() for name, parameter in adapter.parameters.items()}


def assert_alike(pack, adapter, model, other):
    """Velocity and gradients of two MODELs."""
    found = []
    for one in (model, other):
        velocity = velocity_of(pack, one)
        found.append((velocity.value, gradients(adapter, velocity)))
    (value, ours), (expected, theirs) = found
    assert difference(value, expected) < 1e-5
    largest = max(gradient.abs().max() for gradient in theirs.values())
    assert largest > 1e-3
    assert max(difference(ours[name], theirs[name]) for name in theirs) < 1e-5 * max(1.0, largest.item())


def forwards(model):
    return {
        name: module.__dict__["forward"] for name, module in model.model.named_modules() if "forward" in module.__dict__
    }


def host_lora(pack, base):
    """A LoRA of all blocks by the host's own names: in bypass mode it takes no q, k and v apart."""
    layers = pack("nodes.host.adapters.adapter").target_layers(base.model)
    state = {}
    for i, (name, layer) in enumerate(layers.items()):
        state[f"{name}.lora_down.weight"] = 0.1 * numbers(2 * i, 2, layer.in_features)
        state[f"{name}.lora_up.weight"] = 0.1 * numbers(2 * i + 1, layer.out_features, 2)
    return state


STATES = {
    "all blocks": host_lora,
    "a layer without": lambda *_: {
        f"{LINEAR}.lora_down.weight": 0.1 * numbers(1, 4, 64),
        f"{LINEAR}.lora_up.weight": 0.1 * numbers(2, 256, 4),
    },
}


@pytest.mark.parametrize("order", ["before", "after", "both"])
@pytest.mark.parametrize("what", STATES)
def test_a_bypassed_lora_is_as_one_in_the_weights(pack, base, adapter, what, order):
    state = STATES[what](pack, base)
    plain = velocity_of(pack, base).value
    if order == "before":
        model = adapter.attach(bypass(base, state))
        other = adapter.attach(loaded(base, state))
    elif order == "after":
        model = bypass(adapter.attach(base), state)
        other = loaded(adapter.attach(base), state)
    else:  # the host keeps one bypassed LoRA of two
        model = with_scaled(bypass(adapter.attach(with_scaled(base, "first", LAYER, 1.0)), state), "last", LAYER, 1.0)
        other = adapter.attach(loaded(base, state))
    assert_alike(pack, adapter, model, other)
    assert difference(velocity_of(pack, other).value, velocity_of(pack, adapter.attach(base)).value) > 1e-4
    assert torch.equal(velocity_of(pack, base).value, plain)
    unload(base)
    assert not forwards(base)


def unload(model):
    import comfy.model_management

    comfy.model_management.unload_model_and_clones(model)


@settings(max_examples=6)
@given(data=st.data())
def test_any_others_in_any_order_come_out_again(pack, base, adapter, data):
    """Beside one or two of a pack's own on the same layer or on others, samples and steps of several MODELs mixed."""
    plain = velocity_of(pack, base).value
    places = st.sampled_from(
        [LAYER, LINEAR, "diffusion_model.single_blocks.1.linear2", "diffusion_model.single_blocks.0"]
    )
    before = data.draw(st.lists(places, max_size=2), "before")
    after = data.draw(st.lists(places, max_size=2), "after")
    model = base
    for i, place in enumerate(before):
        model = with_scaled(model, f"before {i}", place, 1.0)
    model = adapter.attach(model)
    for i, place in enumerate(after):
        model = with_scaled(model, f"after {i}", place, 1.0)
    expected = velocity_of(pack, adapter.attach(base))
    expected = expected.value, gradients(adapter, expected)
    frozen = pack("nodes.host.flow_model").HostFlow(model, guidance=3.5).frozen_velocity
    steps = {
        "trained": lambda: velocity_of(pack, model),
        "alone": lambda: velocity_of(pack, adapter.attach(base)),
        "cloned": lambda: velocity_of(pack, model.clone()),
    }
    for step in data.draw(st.lists(st.sampled_from([*steps, "frozen", "plain", "fails"]), min_size=1, max_size=5)):
        if step in steps:
            velocity = steps[step]()
            assert difference(velocity.value, expected[0]) < 1e-5
            found = gradients(adapter, velocity)
            assert max(difference(found[name], expected[1][name]) for name in found) < 1e-4
        elif step == "frozen":
            from test_host_adapters import CONTEXT, POOLED, SIGMA, X

            assert difference(frozen(X, SIGMA, [[CONTEXT, {"pooled_output": POOLED}]]), plain) < 1e-5
        elif step == "plain":
            assert torch.equal(velocity_of(pack, base).value, plain)
        else:
            fail_midway(pack, model)
    assert torch.equal(velocity_of(pack, base).value, plain)
    unload(base)
    assert not forwards(base)


def fail_midway(pack, model):
    model = model.clone()
    layer = model.model.get_submodule("diffusion_model.single_blocks.1.linear1")

    def fails(*_, **__):
        raise RuntimeError("midway")

    handle = layer.register_forward_pre_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="midway"):
            velocity_of(pack, model)
    finally:
        handle.remove()


def test_samples_of_the_host_beside_steps_are_right(pack, base, adapter):
    """Rollouts put forwards of their own on blocks, where a pack may have injected too."""
    flow_model = pack("nodes.host.flow_model")
    cond = [[numbers(2, 1, 6, 32), {"pooled_output": numbers(3, 1, 24)}]]
    block = "diffusion_model.double_blocks.1"
    sampling = flow_model.Sampling(steps=2)
    noise = numbers(1, 1, 16, 8, 8)

    class Doubled(Scaled):
        def forward(self, *args, **kwargs):
            return tuple(part * 1.5 for part in self.kept(*args, **kwargs))

    def rollout(model):
        return flow_model.HostFlow(model, sampling, 3.5).rollout(noise, cond, 0)

    from comfy.patcher_extension import PatcherInjection

    plain = rollout(base)
    alone = rollout(adapter.attach(base))
    doubled = Doubled(base.model.get_submodule(block), None)
    other = base.clone()
    other.set_injections("pack", [PatcherInjection(doubled.inject, doubled.eject)])
    model = adapter.attach(other)
    first = rollout(model)
    assert difference(first, alone) > 1e-2
    for of, expected in itertools.chain([(model, first)] * 2, [(base, plain), (model, first), (base, plain)]):
        assert torch.equal(rollout(of), expected)
        velocity_of(pack, model).pull(DIRECTION)
    unload(base)
    assert not forwards(base)


def test_an_adapter_on_another_device_than_the_model(pack, base, adapter):
    """A MODEL put elsewhere by Select Model Device after SRPO Trainer; here the adapter is where no layer is."""
    moved = []
    model = adapter.attach(base)

    class Elsewhere(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, kinds, args=(), kwargs=None):
            if function is torch.Tensor.to and torch.device("cpu", 7) in args:
                moved.append(args[0].shape)
                args = (args[0], torch.device("cpu"))
            return function(*args, **(kwargs or {}))

    expected = velocity_of(pack, model).value
    adapter.device = torch.device("cpu", 7)
    try:
        other = adapter.attach(base)
    finally:
        adapter.device = base.load_device
    with Elsewhere():
        assert difference(velocity_of(pack, other).value, expected) < 1e-5
    assert len(moved) == 2 * len(adapter.modules)
