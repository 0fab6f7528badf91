"""Estimates of each stage's memory against what real runs of it take, counted."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from in_process import new_adapter
from oracle import host_model, host_tiny_vae, host_vae, random_clip, random_flux, random_tiny_vae, random_vae

from srpo_core.algorithm.metrics import saturation
from srpo_core.rewards import clip_reward
from srpo_core.run.draws import draw_noise
from srpo_core.run.memory import LiveBytes, Use
from srpo_core.toy.models import load_tokenizer

CONTEXT = torch.randn(1, 6, 32)
POOLED = torch.randn(1, 24)
COND = [[CONTEXT, {"pooled_output": POOLED}]]


@pytest.fixture(scope="module")
def reward(pack):
    return pack("nodes.host.reward").managed(clip_reward(random_clip(), load_tokenizer()))


def trainable(pack, rank, dtype=torch.float32):
    base = host_model(random_flux(dtype if dtype.itemsize > 1 else torch.float32), dtype)
    adapter = new_adapter(base, rank=rank, alpha=float(rank))
    return adapter.attach(base), adapter


def cost(work):
    """What a piece of work gives, what it takes at most, and what stays alive."""
    with LiveBytes() as count:
        result = work()
        held = count.held
    return result, count.peak, held


def counted(pack, model, adapter, vae, reward, shape, at_once, checkpointing):
    """The peaks by stage, and the adapter's own part of them: parameters, gradients and moments."""
    parameters = list(adapter.parameters.values())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    resting = 3 * sum(parameter.nbytes for parameter in parameters)  # without gradients
    own = resting * 4 // 3
    host_flow = pack("nodes.host.flow_model")
    flow = host_flow.HostFlow(model, host_flow.Sampling(steps=2), None, checkpointing)
    cond = [[CONTEXT.repeat(at_once, 1, 1), {"pooled_output": POOLED.repeat(at_once, 1)}]]
    x = draw_noise(list(range(at_once)), shape)
    sigma = torch.full((at_once,), 0.9)
    _, rollout, _ = cost(lambda: flow.rollout(x, cond, 0))
    with LiveBytes() as branch:
        velocity = flow.velocity(x, sigma, cond)
        graph = branch.held
        velocity.pull(torch.ones_like(x))
    with LiveBytes() as decode:
        decoded = pack("nodes.host.decoder").HostDecoder(vae, model).decode(x)
        picture = decode.held
        decoded.pull(torch.ones_like(decoded.value))
    reward.prepare(["a"])
    image = decoded.value.clone().requires_grad_()
    _, score, _ = cost(lambda: torch.autograd.grad(reward.score(image, ["a"] * at_once).sum(), image))
    tensors = [tensor for held in optimizer.state.values() for tensor in held.values()] + parameters

    def step():
        """With a copy of the state, as a run keeps it."""
        saturation(image)
        alive = [tensor.clone() for tensor in tensors]  # noqa: F841
        optimizer.step()

    _, step, _ = cost(step)
    peaks = {"branch": branch.peak, "decode": graph + decode.peak, "reward": graph + picture + score}
    peaks |= {"optimizer": image.nbytes + step}
    return {"rollout": resting + rollout} | {name: own + peak for name, peak in peaks.items()}


@pytest.mark.parametrize(
    "side, at_once, rank, checkpointing, dtype",
    [
        (8, 1, 4, True, torch.float32),
        (16, 2, 16, True, torch.float32),
        (16, 2, 16, False, torch.float32),
        (24, 1, 64, True, torch.bfloat16),
        (16, 1, 16, False, torch.float8_e4m3fn),
    ],
)
def test_estimate_is_what_a_run_takes(pack, reward, side, at_once, rank, checkpointing, dtype):
    (model, adapter) = trainable(pack, rank, dtype)
    vae = host_vae(random_vae())
    shape = (16, side, side)
    needs = pack("nodes.host.planning").estimate(model, vae, [reward], COND, shape, at_once, checkpointing)
    peaks = counted(pack, model, adapter, vae, reward, shape, at_once, checkpointing)
    assert needs.keys() == peaks.keys()
    off = {name: round(needs[name].working / peak - 1, 3) for name, peak in peaks.items()}
    assert all(abs(share) < 0.1 for share in off.values()), off


def test_weights_are_what_the_models_hold(pack, reward):
    (model, _) = trainable(pack, 4, torch.bfloat16)
    vae = host_vae(random_vae())
    needs = pack("nodes.host.planning").estimate(model, vae, [reward], COND, (16, 8, 8), 1)
    parts = {"branch": model.model, "rollout": model.model, "decode": vae.first_stage_model}
    parts |= {"reward": reward.image_tower, "optimizer": torch.nn.Identity()}
    for stage, part in parts.items():
        assert needs[stage].weights == pytest.approx(sum(p.nbytes for p in part.parameters()), rel=0.01), stage


def test_estimating_touches_nothing(pack, reward):
    """Weights, adapter and gradients stay, no model is loaded, and a later step gives what it would have given."""
    import comfy.model_management

    (model, adapter) = trainable(pack, 4)
    vae = host_vae(random_vae())
    flow = pack("nodes.host.flow_model").HostFlow(model)
    x = draw_noise([0], (16, 8, 8))
    sigma = torch.full((1,), 0.9)
    loaded = list(comfy.model_management.current_loaded_models)
    with torch.inference_mode():  # as nodes are run
        pack("nodes.host.planning").estimate(model, vae, [reward], COND, (16, 8, 8), 2)
    assert comfy.model_management.current_loaded_models == loaded
    assert all(p.grad is None and type(p) is torch.nn.Parameter for p in adapter.parameters.values())
    flow.velocity(x, sigma, COND).pull(torch.ones_like(x))
    first = {name: p.grad for name, p in adapter.parameters.items()}
    pack("nodes.host.planning").estimate(model, vae, [reward], COND, (16, 8, 8), 1)  # the model is loaded now
    for parameter in adapter.parameters.values():
        parameter.grad = None
    flow.velocity(x, sigma, COND).pull(torch.ones_like(x))
    assert all(torch.equal(first[name], p.grad) for name, p in adapter.parameters.items())


def test_blocks_that_are_kept(pack):
    (model, _) = trainable(pack, 4)
    vae = host_tiny_vae(random_tiny_vae())
    estimate = pack("nodes.host.planning").estimate
    few, more, most, none = (
        estimate(model, vae, [], COND, (16, 16, 16), 1, **options)["branch"].working
        for options in ({}, {"kept_blocks": 2}, {"kept_blocks": 4}, {"checkpointing": False})
    )
    assert few < more < most == none


def test_another_adapter_on_the_same_model_does_not_count(pack):
    (model, _) = trainable(pack, 4)
    vae = host_tiny_vae(random_tiny_vae())
    planning = pack("nodes.host.planning")
    shape = (16, 8, 8)
    alone = planning.estimate(model, vae, [], COND, shape, 1)
    base = pack("nodes.host.adapters.adapter").without_adapter(model)
    other = new_adapter(base, rank=64, alpha=64.0).attach(base)
    x = draw_noise([0], shape)
    pack("nodes.host.flow_model").HostFlow(other).velocity(x, torch.full((1,), 0.9), COND)  # is injected from now on
    assert planning.estimate(model, vae, [], COND, shape, 1) == alone


def plan(pack, monkeypatch, free, memory, use, *of):
    """The plan where so many bytes are free, with the adapter that is there."""
    import comfy.model_management

    there = sum(p.nbytes for p in pack("nodes.host.adapters.adapter").adapter_of(of[0]).parameters.values())
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free - there)
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 0)
    return pack("nodes.host.planning").plan(memory, use, *of)


@pytest.mark.parametrize(
    "share, kept_blocks, words",
    [
        (2.0, 0, ""),
        (0.97, 0, "slower"),
        (0.6, 0, "It would with at_once 1."),
        (0.99, 3, "It would with no kept_blocks."),
        (0.01, 0, "No"),
    ],
)
def test_by_hand(pack, reward, monkeypatch, share, kept_blocks, words):
    """By the memory there is, as a part of what is needed: all fits, weights stay in RAM, less at once, nothing."""
    model = trainable(pack, 4)[0]
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 16, 16)
    needs = pack("nodes.host.planning").estimate(model, vae, [reward], COND, shape, 2, kept_blocks=kept_blocks)
    all_there = share > 0.9 and not kept_blocks
    free = int(share * max(need.peak if all_there else need.working for need in needs.values()))
    found = plan(pack, monkeypatch, free, "by hand", Use(2, kept_blocks), model, vae, [reward], COND, shape, 8)
    assert words in found.text and bool(words) == bool(found.text)
    there = 3 * sum(p.nbytes for p in pack("nodes.host.adapters.adapter").adapter_of(model).parameters.values())
    assert found.use == Use(2, kept_blocks) and found.working == needs["branch"].working - there


def test_a_plan_for_a_card_of_some_size(pack, reward, monkeypatch):
    model = trainable(pack, 4)[0]
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 16, 16)
    of = (model, vae, [reward], COND, shape)
    planning = pack("nodes.host.planning")

    def peak(*use):
        needs = planning.estimate(*of, use[0], kept_blocks=use[1], offload=len(use) > 2)
        return max(need.peak for need in needs.values()), needs["branch"].working

    def planned(free, memory):
        return plan(pack, monkeypatch, free, memory, Use(4, 2, True), *of, 8)

    blocks = 4
    assert planned(int(1.01 * peak(4, blocks)[0]), "auto").use == Use(4, blocks, sampled_at_once=8)
    between = (peak(2, 1)[0] + peak(2, 2)[0]) // 2
    assert planned(between, "auto").use == Use(2, 1, sampled_at_once=8)
    chosen = plan(pack, monkeypatch, int(1.01 * peak(8, blocks)[0]), "auto", Use(0), *of, 8)
    assert chosen.use == Use(8, blocks, sampled_at_once=8)
    little = planned(peak(1, 0)[0] - 1, "auto")
    assert little.use == Use(1, 0, True, 8) and "slower" in little.text
    monkeypatch.setitem(planning.CARDS, "8 GB", between)  # of a larger card no more than this is used
    small = planned(10 * between, "8 GB")
    there = 3 * sum(p.nbytes for p in pack("nodes.host.adapters.adapter").adapter_of(model).parameters.values())
    assert small.use == Use(2, 1, sampled_at_once=8) and small.working == peak(2, 1)[1] - there + 9 * between


def on_device(pack, model, device):
    """The MODEL and its adapter as if the host had put them there."""
    module = pack("nodes.host.adapters.adapter")
    adapter = module.adapter_of(model)
    base = module.without_adapter(model)
    adapter.device = base.load_device = torch.device(device)
    return adapter.attach(base)


def test_parked_inputs_are_not_on_the_device(pack, monkeypatch):
    """Counted on the device without content, as there is no GPU here: each block's inputs wait elsewhere."""
    model = trainable(pack, 4)[0]
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 16, 16)
    model = on_device(pack, model, "meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which this device has not
    estimate = pack("nodes.host.planning").estimate
    there, offloaded = (
        estimate(model, vae, [], COND, shape, 1, offload=offload)["branch"] for offload in (False, True)
    )
    tokens = 6 + 8 * 8
    width = 32
    assert there.working - offloaded.working > 2 * tokens * width * 4


def test_only_what_computes_on_the_models_device_is_counted(pack, reward, monkeypatch):
    """With the VAE, the reward or both elsewhere, as by --cpu-vae, the branch needs what it always needs."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = on_device(pack, trainable(pack, 4)[0], "meta")
    vae = host_tiny_vae(random_tiny_vae())
    estimate = pack("nodes.host.planning").estimate
    stages = {}
    for places in (("meta", "meta"), ("cpu", "meta"), ("meta", "cpu"), ("cpu", "cpu")):
        vae.device = torch.device(places[0])
        held = SimpleNamespace(load_device=torch.device(places[1]))
        monkeypatch.setattr(reward.image_tower, "patcher", held, raising=False)
        stages[places] = estimate(model, vae, [reward], COND, (16, 16, 16), 1)
    assert {places: sorted(set(needs) & {"decode", "reward"}) for places, needs in stages.items()} == {
        ("meta", "meta"): ["decode", "reward"],
        ("cpu", "meta"): ["reward"],
        ("meta", "cpu"): ["decode"],
        ("cpu", "cpu"): [],
    }
    assert len({needs["branch"] for needs in stages.values()}) == 1
    assert stages["cpu", "cpu"]["optimizer"].peak < stages["meta", "cpu"]["optimizer"].peak  # no picture lies there


@pytest.mark.parametrize("device, memory, asked", [("cpu", "auto", None), ("cuda", "auto", 0), ("cuda", "by hand", 1)])
@pytest.mark.parametrize("vae_device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("fails", [False, True])
def test_how_many_share_a_forward_is_chosen_where_the_model_is_on_a_gpu(
    pack, monkeypatch, device, memory, asked, fails, vae_device
):
    """Wherever its VAE is. And it is one where nothing can be chosen."""
    from server import PromptServer

    said = []
    planned = []

    def plan(memory, use, *_):
        planned.append(use.at_once)
        if fails:
            raise RuntimeError("no such operation on tensors without content")
        return Use(4, 57, False, 8), 123, "a warning"

    monkeypatch.setattr(pack("nodes.host.planning"), "plan", plan)
    server = SimpleNamespace(send_progress_text=lambda text, node: said.append((text, node)))
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    decoder = SimpleNamespace(vae=SimpleNamespace(device=torch.device(vae_device)))
    data = SimpleNamespace(cond=lambda indices: COND)
    trainer = SimpleNamespace(model=SimpleNamespace(load_device=torch.device(device)))
    world = trainer, decoder, [], data, (16, 8, 8), 8
    used = pack("nodes.memory").use_of_memory("7", memory, Use(0, 3), *world)
    assert planned == ([] if asked is None else [asked])
    if fails or asked is None:
        assert used == (Use(1, 3), None) and not said
    else:
        assert used == (Use(4, 57, False, 8), 123) and said == [("a warning", "7")]
