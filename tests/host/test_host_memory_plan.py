"""Estimates of each stage's memory against what real runs of it take, counted."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from in_process import new_adapter, new_flow, pack_module
from oracle import host_model, host_tiny_vae, host_vae, random_clip, random_flux, random_tiny_vae, random_vae

from srpo_core.algorithm.metrics import saturation
from srpo_core.rewards import clip_reward
from srpo_core.run.draws import draw_noise
from srpo_core.run.memory import LiveBytes
from srpo_core.toy.models import load_tokenizer

CONTEXT = torch.randn(1, 6, 32)
POOLED = torch.randn(1, 24)
COND = [[CONTEXT, {"pooled_output": POOLED}]]


@pytest.fixture(scope="module")
def reward(pack):
    return pack("nodes.host.reward").managed(clip_reward(random_clip(), load_tokenizer()))


def workload(pack, model, vae, rewards, shape, batch=1):
    made = pack("nodes.host.memory_estimate").Workload
    return made(model=model, vae=vae, rewards=rewards, cond=COND, shape=shape, batch=batch)


def estimate(pack, model, vae, rewards, shape, at_once, **settings):
    blocks = pack("nodes.host.gradients.differentiable").BlockSettings(**settings)
    return pack("nodes.host.memory_estimate").estimate(workload(pack, model, vae, rewards, shape), at_once, blocks)


def memory_use(at_once=1, kept_blocks=0, offload=False, sampled_at_once=1):
    return pack_module("srpo_core.run.memory").MemoryUse(
        at_once=at_once, kept_blocks=kept_blocks, offload=offload, sampled_at_once=sampled_at_once
    )


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
    flow = new_flow(model, host_flow.Sampling(steps=2), checkpointing=checkpointing)
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
    needs = estimate(pack, model, vae, [reward], shape, at_once, checkpointing=checkpointing)
    peaks = counted(pack, model, adapter, vae, reward, shape, at_once, checkpointing)
    assert needs.keys() == peaks.keys()
    off = {name: round(needs[name].working / peak - 1, 3) for name, peak in peaks.items()}
    assert all(abs(share) < 0.1 for share in off.values()), off


def test_weights_are_what_the_models_hold(pack, reward):
    (model, _) = trainable(pack, 4, torch.bfloat16)
    vae = host_vae(random_vae())
    needs = estimate(pack, model, vae, [reward], (16, 8, 8), 1)
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
        estimate(pack, model, vae, [reward], (16, 8, 8), 2)
    assert comfy.model_management.current_loaded_models == loaded
    assert all(p.grad is None and type(p) is torch.nn.Parameter for p in adapter.parameters.values())
    flow.velocity(x, sigma, COND).pull(torch.ones_like(x))
    first = {name: p.grad for name, p in adapter.parameters.items()}
    estimate(pack, model, vae, [reward], (16, 8, 8), 1)  # the model is loaded now
    for parameter in adapter.parameters.values():
        parameter.grad = None
    flow.velocity(x, sigma, COND).pull(torch.ones_like(x))
    assert all(torch.equal(first[name], p.grad) for name, p in adapter.parameters.items())


def test_blocks_that_are_kept(pack):
    (model, _) = trainable(pack, 4)
    vae = host_tiny_vae(random_tiny_vae())
    few, more, most, none = (
        estimate(pack, model, vae, [], (16, 16, 16), 1, **options)["branch"].working
        for options in ({}, {"kept_blocks": 2}, {"kept_blocks": 4}, {"checkpointing": False})
    )
    assert few < more < most == none


def test_another_adapter_on_the_same_model_does_not_count(pack):
    (model, _) = trainable(pack, 4)
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 8, 8)
    alone = estimate(pack, model, vae, [], shape, 1)
    base = pack("nodes.host.adapters.readable").without_adapter(model)
    other = new_adapter(base, rank=64, alpha=64.0).attach(base)
    x = draw_noise([0], shape)
    pack("nodes.host.flow_model").HostFlow(other).velocity(x, torch.full((1,), 0.9), COND)  # is injected from now on
    assert estimate(pack, model, vae, [], shape, 1) == alone


def plan(pack, monkeypatch, free, memory, use, work):
    """The plan where so many bytes are free, with the adapter that is there."""
    import comfy.model_management

    there = sum(p.nbytes for p in pack("nodes.host.adapters.readable").adapter_of(work.model).parameters.values())
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free - there)
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 0)
    return pack("nodes.host.memory_plan").plan(memory, use, work)


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
    needs = estimate(pack, model, vae, [reward], shape, 2, kept_blocks=kept_blocks)
    all_there = share > 0.9 and not kept_blocks
    free = int(share * max(need.peak if all_there else need.working for need in needs.values()))
    work = workload(pack, model, vae, [reward], shape, 8)
    found = plan(pack, monkeypatch, free, "by hand", memory_use(2, kept_blocks), work)
    assert words in found.text and bool(words) == bool(found.text)
    there = 3 * sum(p.nbytes for p in pack("nodes.host.adapters.readable").adapter_of(model).parameters.values())
    assert found.use == memory_use(2, kept_blocks) and found.working == needs["branch"].working - there


def test_a_plan_for_a_card_of_some_size(pack, reward, monkeypatch):
    model = trainable(pack, 4)[0]
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 16, 16)
    of = (model, vae, [reward], shape)
    work = workload(pack, *of, 8)

    def peak(*use):
        needs = estimate(pack, *of, use[0], kept_blocks=use[1], offload=len(use) > 2)
        return max(need.peak for need in needs.values()), needs["branch"].working

    def planned(free, memory):
        return plan(pack, monkeypatch, free, memory, memory_use(4, 2, True), work)

    blocks = 4
    assert planned(int(1.01 * peak(4, blocks)[0]), "auto").use == memory_use(4, blocks, sampled_at_once=8)
    between = (peak(2, 1)[0] + peak(2, 2)[0]) // 2
    assert planned(between, "auto").use == memory_use(2, 1, sampled_at_once=8)
    chosen = plan(pack, monkeypatch, int(1.01 * peak(8, blocks)[0]), "auto", memory_use(0), work)
    assert chosen.use == memory_use(8, blocks, sampled_at_once=8)
    little = planned(peak(1, 0)[0] - 1, "auto")
    assert little.use == memory_use(1, 0, True, 8) and "slower" in little.text
    cards = pack("nodes.host.memory_plan").CARDS
    monkeypatch.setitem(cards, "8 GB", between)  # of a larger card no more than this is used
    small = planned(10 * between, "8 GB")
    there = 3 * sum(p.nbytes for p in pack("nodes.host.adapters.readable").adapter_of(model).parameters.values())
    assert small.use == memory_use(2, 1, sampled_at_once=8) and small.working == peak(2, 1)[1] - there + 9 * between


def on_device(pack, model, device):
    """The MODEL and its adapter as if the host had put them there."""
    module = pack("nodes.host.adapters.readable")
    adapter = module.adapter_of(model)
    base = module.without_adapter(model)
    adapter.device = torch.device(device)
    base.load_device = adapter.device
    return adapter.attach(base)


def test_parked_inputs_are_not_on_the_device(pack, monkeypatch):
    """Counted on the device without content, as there is no GPU here: each block's inputs wait elsewhere."""
    model = trainable(pack, 4)[0]
    vae = host_tiny_vae(random_tiny_vae())
    shape = (16, 16, 16)
    model = on_device(pack, model, "meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which this device has not
    there, offloaded = (
        estimate(pack, model, vae, [], shape, 1, offload=offload)["branch"] for offload in (False, True)
    )
    tokens = 6 + 8 * 8
    width = 32
    assert there.working - offloaded.working > 2 * tokens * width * 4


def test_only_what_computes_on_the_models_device_is_counted(pack, reward, monkeypatch):
    """With the VAE, the reward or both elsewhere, as by --cpu-vae, the branch needs what it always needs."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = on_device(pack, trainable(pack, 4)[0], "meta")
    vae = host_tiny_vae(random_tiny_vae())
    stages = {}
    for places in (("meta", "meta"), ("cpu", "meta"), ("meta", "cpu"), ("cpu", "cpu")):
        vae.device = torch.device(places[0])
        held = SimpleNamespace(load_device=torch.device(places[1]))
        monkeypatch.setattr(reward.image_tower, "patcher", held, raising=False)
        stages[places] = estimate(pack, model, vae, [reward], (16, 16, 16), 1)
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
        return memory_plan.MemoryPlan(memory_use(4, 57, False, 8), 123, "a warning")

    memory_plan = pack("nodes.host.memory_plan")
    monkeypatch.setattr(memory_plan, "plan", plan)
    server = SimpleNamespace(send_progress_text=lambda text, node: said.append((text, node)))
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    vae = SimpleNamespace(device=torch.device(vae_device))
    model = SimpleNamespace(load_device=torch.device(device))
    work = workload(pack, model, vae, [], (16, 8, 8), 8)
    set_by_hand = {"at_once": 1, "sampled_at_once": 1, "kept_blocks": 3, "offload": False}
    chosen = {"memory": memory, **(set_by_hand if memory == "by hand" else {})}
    used = pack("nodes.memory").plan_memory("7", chosen, work)
    assert planned == ([] if asked is None else [asked])
    assert said == ([(used.text, "7")] if used.text else [])
    if asked is None:
        assert used == memory_plan.MemoryPlan(memory_use(1, chosen.get("kept_blocks", 0)))
    elif fails:
        assert used == memory_plan.MemoryPlan(memory_use(1, chosen.get("kept_blocks", 0)), None, used.text)
        assert "could not be estimated (RuntimeError: no such operation on tensors" in used.text
    else:
        assert used == memory_plan.MemoryPlan(memory_use(4, 57, False, 8), 123, "a warning")


class Told:
    """A dataset that gives what it was told to make ready, and nothing else."""

    prompts = ["a cat", "a dog", "a fox", "a hen", "a pig", "a rat", "an elk", "an owl"]

    def __init__(self):
        self.ready = set()

    def prepare(self, indices):
        self.ready.update(indices)

    def cond(self, indices):
        assert self.ready.issuperset(indices), "text encoders are loaded again"
        return COND


def test_an_estimate_takes_no_prompt_that_is_not_drawn(pack, reward, monkeypatch):
    """Where previews have prompts of their own, the first one that is trained on may not be encoded yet."""
    training = pack("nodes.training")
    model, _ = trainable(pack, 4)
    planned = []

    def plan(node, memory, work):
        planned.append(work.cond)
        return pack("nodes.host.memory_plan").MemoryPlan(memory_use())

    monkeypatch.setattr(training, "plan_memory", plan)
    dataset = Told()
    inputs = training.TrainInputs(
        dataset=dataset,
        vae=host_vae(random_vae()),
        reward=reward,
        objective=pack("srpo_core.algorithm.objective").Objective(),
        updates=1,
        width=64,
        height=64,
        batch=1,
        seed=0,
        guidance=3.5,
        cfg=1.0,
        negative=None,
        memory={"memory": "auto"},
        rollouts=pack("nodes.rollouts").Rollouts(),
        levels=pack("nodes.noise_levels").NoiseLevels(),
        watch=pack("nodes.watch").Watch(),
        previews=pack("nodes.previews").PreviewSettings(dataset=Told()),
        more_rewards=[],
        gradient_vae=None,
    )
    for updates in range(len(Told.prompts)):
        dataset.ready.clear()
        run = SimpleNamespace(updates=updates, checked=set())
        training.training_of(SimpleNamespace(model=model, run=run), inputs, "7")
        assert len(dataset.ready) == 1
    assert planned == [COND] * len(Told.prompts)
