"""The core's nodes that read a MODEL's weights see what was trained, as its own file would give it."""

import pytest
import torch
from in_process import new_adapter
from oracle import host_model, random_flux
from safetensors.torch import load_file
from test_host_adapters import DIRECTION, KINDS, difference, loaded, move, peft_lora, velocity_of


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


@pytest.fixture(scope="module")
def other(pack):
    """Another model of the kind."""
    flux = random_flux()
    for parameter in flux.parameters():
        parameter.data.mul_(0.9)
    return host_model(flux)


@pytest.fixture
def make(pack, base):
    def make(kind="LoRA", model=base):
        adapter = new_adapter(model, kind=kind, rank=4, alpha=2.0)
        move(adapter, 1)
        return adapter

    return make


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The file that the core's Save Model, or Save Checkpoint, writes of a MODEL."""
    import folder_paths
    from comfy_extras.nodes_model_merging import ModelSave

    def saved(model, name):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
        node = ModelSave()
        with torch.inference_mode():
            node.save(model, name)
        return load_file(max(tmp_path.glob(f"{name}*.safetensors")))

    return saved


def merging(name, *args, **kwargs):
    """A MODEL of one of the core's merging nodes."""
    from comfy_extras import nodes_model_merging

    with torch.inference_mode():
        return getattr(nodes_model_merging, name)().merge(*args, **kwargs)[0]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_that_of_the_file(pack, make, base, saved, kind):
    adapter = make(kind)
    plain = velocity_of(pack, base).value
    model = adapter.attach(base)
    live = velocity_of(pack, model).value
    untrained = saved(base, "plain")
    found = saved(model, "live")
    assert_same(found, saved(loaded(base, adapter.state_dict()), "file"))
    assert sum(not torch.equal(tensor, untrained[name]) for name, tensor in found.items()) >= len(adapter.modules)
    assert torch.equal(velocity_of(pack, model).value, live)
    assert torch.equal(velocity_of(pack, base).value, plain)
    assert_same(saved(base, "plain"), untrained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_in_smaller_types_too(pack, make, saved, dtype):
    model = host_model(random_flux(), dtype)
    adapter = make("LoRA", model)
    assert_same(saved(adapter.attach(model), "live"), saved(loaded(model, adapter.state_dict()), "file"))


def test_saving_follows_the_training_and_does_not_touch_it(pack, make, base, saved):
    adapter = make()
    model = adapter.attach(base)
    velocity = velocity_of(pack, model)
    velocity.pull(DIRECTION)
    first = saved(model, "live")
    before = {name: p.grad.clone() for name, p in adapter.parameters.items()}
    move(adapter, 2)
    second = saved(loaded(model, peft_lora(2)), "live")  # a LoRA beside it, on a clone
    assert_same(second, saved(loaded(loaded(base, peft_lora(2)), adapter.state_dict()), "file"))
    assert any(difference(first[name], second[name]) > 1e-3 for name in first)
    assert all(torch.equal(p.grad, before[name]) for name, p in adapter.parameters.items())


MERGES = {
    "simple": lambda one, two: merging("ModelMergeSimple", one, two, 0.3),
    "blocks": lambda one, two: merging("ModelMergeBlocks", one, two, input=0.2, middle=1.0, out=0.7, double_blocks=0.5),
    "subtract": lambda one, two: merging("ModelSubtract", one, two, 0.5),
    "add": lambda one, two: merging("ModelAdd", one, two),
}


@pytest.mark.parametrize(
    "merge, place, kind",
    [(merge, place, "LoRA") for merge in MERGES for place in ("first", "second")]
    + [("simple", "both", "LoKr"), ("add", "first", "OFT"), ("add", "first", "full")],
)
def test_a_merge_is_that_of_the_file(pack, make, base, other, merge, place, kind):
    mine = make(kind)
    theirs = make("LoRA", other)
    one = base if place == "second" else mine.attach(base)
    one_file = base if place == "second" else loaded(base, mine.state_dict())
    two = other if place == "first" else theirs.attach(other)
    two_file = other if place == "first" else loaded(other, theirs.state_dict())
    found = MERGES[merge](one, two)
    expected = MERGES[merge](one_file, two_file)
    value = velocity_of(pack, expected).value
    move(mine, 2)  # what is merged stays as it was
    move(theirs, 2)
    assert torch.equal(velocity_of(pack, found).value, value)
    assert difference(velocity_of(pack, MERGES[merge](base, other)).value, value) > 1e-5
    if place != "second":
        assert pack("nodes.host.adapters.readable").adapter_of(found) is None and not found.injections
        assert difference(velocity_of(pack, one).value, velocity_of(pack, mine.attach(base)).value) == 0  # still live


def test_extract_and_save_lora_of_the_difference(pack, make, base, tmp_path, monkeypatch):
    import folder_paths
    from comfy_extras.nodes_lora_extract import LoraSave

    adapter = make()
    model = adapter.attach(base)
    live = velocity_of(pack, model).value
    plain = velocity_of(pack, base).value
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with torch.inference_mode():
        difference_of = merging("ModelSubtract", model, base, 1.0)
        LoraSave.execute("extracted", 4, "standard", False, model_diff=difference_of)
    value = velocity_of(pack, loaded(base, load_file(next(tmp_path.glob("extracted*"))))).value
    assert difference(value, live) < 0.2 * difference(plain, live)  # in half precision, the largest values clamped


def test_a_merged_model_is_trained_as_any_other(pack, make, base, other):
    adapter = make()
    merged = MERGES["simple"](make("LoKr").attach(base), other)
    velocity = velocity_of(pack, adapter.attach(merged))
    velocity.pull(DIRECTION)
    assert all(p.grad.abs().max() > 0 for p in adapter.parameters.values())
    assert torch.equal(velocity_of(pack, adapter.attach(merged)).value, velocity.value)


def test_a_clone_of_any_class_answers_too(pack, make, base, saved):
    """A pack's patcher that sets its own class after cloning, as ComfyUI-GGUF's does."""
    from comfy.model_patcher import ModelPatcher

    class Packed(ModelPatcher):
        def clone(self, *args, **kwargs):
            before = self.__class__
            self.__class__ = ModelPatcher
            clone = ModelPatcher.clone(self, *args, **kwargs)
            clone.__class__ = before
            self.__class__ = before
            return clone

    packed = base.clone()
    packed.__class__ = Packed
    adapter = make()
    model = adapter.attach(packed).clone().clone()
    assert type(model) is Packed
    assert_same(saved(model, "live"), saved(loaded(base, adapter.state_dict()), "file"))


def test_a_model_that_is_gone_is_let_go(pack, make, base):
    """What answers for it holds it no longer than the rest does, for the host watches when it goes."""
    import weakref

    model = make().attach(base)
    clone = model.clone()
    gone = [weakref.ref(model), weakref.ref(clone)]
    del model, clone
    assert [of() for of in gone] == [None, None]
