"""What a MODEL carries: an open run takes it as it comes, and nothing that an earlier prompt left behind."""

from types import SimpleNamespace

import pytest
import torch
from in_process import new_adapter
from oracle import host_model, random_flux
from prompts import base as base_of
from prompts import node, sample, save_latent
from safetensors.torch import load_file
from test_host_adapters import CONTEXT, DIRECTION, POOLED, SIGMA, X, difference, loaded, move, peft_lora, velocity_of

COND = [[CONTEXT, {"pooled_output": POOLED}]]


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


def shifted(model, shift=1.0986):
    """By the core's ModelSamplingFlux."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    return ModelSamplingFlux().patch(model, shift, shift, 64, 64)[0]


def quieter(q, k, v, *_, **__):
    return {"q": q * 0.5, "k": k, "v": v}


def louder(apply, *args, **kwargs):
    return 1.25 * apply(*args, **kwargs)


def patched(model, change):
    model = model.clone()
    change(model)
    return model


def doubled_latents(model):
    import comfy.latent_formats

    latent_format = comfy.latent_formats.Flux()
    latent_format.scale_factor *= 2
    model.add_object_patch("latent_format", latent_format)


CHANGES = {
    "object patch": shifted,
    "weights": lambda model: loaded(model, peft_lora(2)),
    "attention patch": lambda model: patched(model, lambda m: m.set_model_attn1_patch(quieter)),
    "model options": lambda model: patched(model, lambda m: m.set_model_sampler_post_cfg_function(halved)),
    "wrapper": lambda model: patched(model, lambda m: m.add_wrapper_with_key("apply_model", "pack", louder)),
    "latent format": lambda model: patched(model, doubled_latents),
    "a layer": lambda model: patched(model, other_layer),
}


def halved(args):
    return args["denoised"] * 0.5


def other_layer(model):
    layer = model.get_model_object("diffusion_model.single_blocks.0.linear2")
    other = torch.nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        other.weight.copy_(0.5 * layer.weight)
        other.bias.copy_(layer.bias)
    model.add_object_patch("diffusion_model.single_blocks.0.linear2", other.requires_grad_(False))


def settings_of(pack, learning_rate=1e-4, **adapter):
    """OpenRunSettings of a small LoRA."""
    of = pack("nodes.host.adapters.settings").AdapterSettings(**{"rank": 4, "alpha": 4.0, **adapter})
    run = pack("srpo_core.run.settings").Settings(learning_rate=learning_rate)
    return pack("nodes.open_run").OpenRunSettings(adapter=of, run=run)


@pytest.fixture
def queue(pack, tmp_path, monkeypatch):
    """SRPO Trainer's part of one queued prompt: the trainer for this MODEL."""
    import folder_paths

    runs = pack("nodes.open_runs")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    prompts = []

    def queue(model, name="style", **adapter):
        prompts.append(SimpleNamespace(prompt_id=str(len(prompts)), node_id="1"))
        monkeypatch.setattr(runs, "get_executing_context", lambda: prompts[-1])
        return runs.open_run(name, model, settings_of(pack, **adapter))

    yield queue
    for name in list(runs._open):
        runs.close_run(name)


def seen(pack, model):
    """All that a run sees of its MODEL: rollout, trained step, frozen velocity, the latents' scale."""
    flow_model = pack("nodes.host.flow_model")
    carried = pack("nodes.host.patcher.carried")
    flow = flow_model.HostFlow(model, flow_model.Sampling(steps=2), 3.5)
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(DIRECTION)
    parameters = list(flow.parameters.values())
    gradients = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return [
        velocity.value,
        flow.rollout(X, COND, 0),
        flow.frozen_velocity(X, SIGMA, COND),
        carried.latent_in(model, X),
        carried.latent_out(model, X),
        *gradients,
    ]


def assert_same(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_an_open_run_takes_the_model_as_it_comes(pack, base, queue, change):
    first = queue(base)
    move(first.adapter, 1)
    before = seen(pack, first.model)
    changed = CHANGES[change](base)
    again = queue(changed)
    assert again is first and again.base is changed and pack("nodes.open_runs").run_of(again.model) is first
    during = seen(pack, again.model)
    assert_same(during, seen(pack, again.adapter.attach(changed)))
    assert max(difference(a, b) for a, b in zip(before, during)) > 1e-4
    assert_same(seen(pack, queue(base).model), before)


def test_what_a_cache_kept_of_an_earlier_opening_is_not_handed_out_again(pack, base, queue):
    """ComfyUI keeps outputs of earlier prompts, by default, for as long as there is RAM."""
    state_of = pack("nodes.open_runs").state_of
    states = []
    for name in ("style", "other", "style", "style"):
        trainer = queue(base, name)
        states.append((trainer, state_of("style")))
    (first, opened), (_, closed), (second, again), (third, same) = states
    assert first is not second and second is third
    assert opened != again == same and closed != state_of("other") and closed != closed
    second.run.lost = True
    assert state_of("style") != state_of("style")


def test_a_list_of_settings_does_not_open_one_run_twice(pack, base, queue, monkeypatch):
    runs = pack("nodes.open_runs")
    first = queue(base)
    context = runs.get_executing_context()
    monkeypatch.setattr(runs, "get_executing_context", lambda: context)
    with pytest.raises(ValueError, match='gets a list, and opens the run "style" again'):
        runs.open_run("style", base, settings_of(pack, learning_rate=0.5))
    assert runs.open_run("style", base, settings_of(pack)) is first and first.usable()


@pytest.mark.parametrize("change", CHANGES)
def test_what_another_model_left_on_the_shared_one_does_not_count(pack, base, change):
    """It stays there while that is loaded; so nothing may be read off the model itself."""
    adapter = new_adapter(base, rank=4, alpha=4.0)
    move(adapter, 1)
    before = seen(pack, adapter.attach(base))
    other = CHANGES[change](base)
    for of in (adapter.attach(base), base):
        velocity_of(pack, other)  # loaded now
        assert_same(seen(pack, adapter.attach(base)), before)
        velocity_of(pack, other)
        assert torch.equal(pack("nodes.host.patcher.carried").latent_in(of, X), before[3])
        assert new_adapter(of, rank=4, alpha=4.0).fits(base)


def test_a_failure_in_the_middle_leaves_nothing(pack, base, queue, monkeypatch):
    trainer = queue(shifted(base))
    move(trainer.adapter, 1)
    before = seen(pack, trainer.model)

    def fails(*_, **__):
        raise RuntimeError("midway")

    failing = patched(base, lambda m: m.add_wrapper_with_key("apply_model", "pack", fails))
    with pytest.raises(RuntimeError, match="midway"):
        seen(pack, queue(failing).model)
    assert_same(seen(pack, queue(shifted(base)).model), before)


def test_another_model_or_other_layers_or_another_device_open_the_run_anew(pack, base, queue):
    first = queue(base)
    other = host_model(random_flux())
    assert (second := queue(other)) is not first
    assert queue(other, target="attention") is not second
    moved = other.clone()
    adapter = queue(other).adapter
    moved.load_device = torch.device("meta")
    assert adapter.fits(other) and not adapter.fits(moved)
    wider = patched(
        other, lambda m: m.add_object_patch("diffusion_model.double_blocks.0.img_mlp.0", torch.nn.Linear(256, 512))
    )
    assert not adapter.fits(wider)


@pytest.mark.parametrize("through", ["itself", "a LoRA", "a clone"])
def test_a_model_that_carries_a_runs_adapter_is_refused(base, queue, through):
    model = queue(base, "first").model
    model = {"itself": model, "a LoRA": loaded(model, peft_lora(2)), "a clone": model.clone()}[through]
    for name in ("first", "second"):
        with pytest.raises(ValueError, match='carries the adapter of the run "first" already: connect the model from'):
            queue(model, name)


@pytest.mark.parametrize("change", CHANGES)
def test_the_signature_tells_what_changed(pack, base, change):
    signature = pack("nodes.host.patcher.carried").signature
    changed = CHANGES[change](base)
    assert signature(base) == signature(base.clone()) != signature(changed)
    assert signature(changed) == signature(changed.clone())
    assert {signature(base): 1}[signature(base.clone())]


def test_the_signature_compares_by_value_where_it_can(pack, base):
    signature = pack("nodes.host.patcher.carried").signature
    assert signature(shifted(base, 1.1)) == signature(shifted(base, 1.1)) != signature(shifted(base, 1.2))
    adapter = new_adapter(base, rank=4, alpha=4.0)
    assert signature(adapter.attach(base), ignore="srpo") == signature(adapter.attach(base), ignore="srpo")
    table = torch.zeros(3)
    options = [patched(base, lambda m, x=x: m.model_options.update(table=x)) for x in (table, table + 0, table + 1)]
    assert signature(options[0]) == signature(options[1]) != signature(options[2])


def test_model_sampling_between_two_queues_counts(host):
    """The adapter is at zero, so the trainer's MODEL must give the very latents of what came in."""
    found = {}
    for shift in (None, 1.0986, None):
        prompt = base_of("carried", learning_rate=0.0) | sample(["trainer", 1], 7)
        prompt |= save_latent(["sample", 0], "carried")
        if shift is not None:
            shifts = {"max_shift": shift, "base_shift": shift, "width": 64, "height": 64}
            prompt["shift"] = node("ModelSamplingFlux", model=["toy", 0], **shifts)
            prompt["trainer"]["inputs"]["model"] = ["shift", 0]
        for source in (["trainer", 1], prompt["trainer"]["inputs"]["model"]):
            prompt["guider"]["inputs"]["model"] = source
            prompt["sigmas"]["inputs"]["model"] = source
            host.run(prompt)
            files = sorted((host.base / "output").glob("carried*.latent"))
            found.setdefault(shift, []).append(load_file(files[-1])["latent_tensor"])
    assert all(torch.equal(latent, latents[0]) for latents in found.values() for latent in latents)
    assert difference(found[None][0], found[1.0986][0]) > 1e-3
