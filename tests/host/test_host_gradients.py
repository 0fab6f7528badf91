"""The host's FLUX, differentiated as it was loaded, against diffusers + peft: the same numbers."""

from collections import Counter

import pytest
import torch
from in_process import new_adapter, new_flow
from oracle import Oracle, host_model, host_vae, random_clip, random_flux, random_vae, with_adapter

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Noised, one_step_recover, score_recovered
from srpo_core.algorithm.terms import Term
from srpo_core.headless.decoder import DiffusersDecoder
from srpo_core.rewards import clip_reward
from srpo_core.run.draws import draw_noise
from srpo_core.toy.models import load_tokenizer

PROMPTS = ["a red circle on grass", "a blue square"]


@pytest.fixture(scope="module")
def world(pack):
    """The host's side and the oracle's, fp32."""
    flux = random_flux()
    vae = random_vae()
    clip = random_clip()
    base = host_model(flux)
    model, adapter = with_adapter(base)
    reward = clip_reward(clip, load_tokenizer())
    return (
        base,
        model,
        adapter,
        Oracle(flux, adapter),
        host_vae(vae),
        DiffusersDecoder(vae, checkpointing=False),
        reward,
    )


def sample(batch: int, position: int) -> tuple[Noised, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x0 = torch.randn(batch, 16, 8, 8, generator=generator)
    noised = Noised(x0, draw_noise(list(range(batch)), (16, 8, 8)), Window().branches([position, 500][:batch]))
    return noised, torch.randn(batch, 6, 32, generator=generator), torch.randn(batch, 24, generator=generator)


def pull_back(flow, cond, noised, branch, decoder, reward):
    """One branch's score after its gradient went to the adapter's `.grad`, which began empty."""
    for parameter in flow.parameters.values():
        parameter.grad = None
    recovered = one_step_recover(flow, cond, noised, branch)
    prompts = PROMPTS[: len(noised.x0)]
    score = score_recovered(
        recovered,
        branch,
        decoder,
        [Term(reward=reward, objective=Objective(threshold=100.0))],
        prompts=prompts,
        update=1,
    )
    score.pull(1.0)
    return recovered.value, score


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("position", [40, 500, 900])
@pytest.mark.parametrize("name", ["denoise", "inversion"])
def test_gradient_equals_diffusers_and_peft(world, pack, checkpointing, batch, position, name):
    base, model, adapter, oracle, vae, decoder, reward = world
    noised, context, pooled = sample(batch, position)
    branch = next(b for b in noised.branches if b.name == name)
    flow = new_flow(model, guidance=3.5, checkpointing=checkpointing)
    host_decoder = pack("nodes.host.decoder").HostDecoder(vae, model)
    expected, theirs = pull_back(oracle.flow, {"context": context, "pooled": pooled}, noised, branch, decoder, reward)
    value, ours = pull_back(flow, [[context, {"pooled_output": pooled}]], noised, branch, host_decoder, reward)
    assert relative(value, expected) < 1e-5
    assert relative(ours.image, theirs.image) < 1e-5
    assert relative(ours.gradient, theirs.gradient) < 1e-5
    errors = {n: relative(adapter.parameters[n].grad, g) for n, g in oracle.gradients(adapter).items()}
    assert max(errors.values()) < 1e-5, sorted(errors.items(), key=lambda e: -e[1])[:3]


@pytest.fixture
def work(pack, monkeypatch):
    """How often the frozen layers ran, and how often a gradient went through them, by the layer."""
    layer = pack("nodes.host.gradients.frozen").FrozenLinear
    forwards = Counter()
    backwards = Counter()
    make = layer.__init__
    pull = layer.pull

    def counted(self, module, forward):
        make(self, module, lambda *args, **kwargs: forwards.update([module]) or forward(*args, **kwargs))

    def counted_pull(self, *args):
        backwards.update([self.module])
        return pull(self, *args)

    monkeypatch.setattr(layer, "__init__", counted)
    monkeypatch.setattr(layer, "pull", counted_pull)
    return forwards, backwards


def trained_step(pack, model, target="all", **memory):
    """One update's forward and backward with an adapter; its gradients."""
    adapter = new_adapter(model, target=target)
    flow = new_flow(adapter.attach(model), **memory)
    _, context, pooled = sample(1, 500)
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    flow.velocity(x, torch.tensor([0.8]), [[context, {"pooled_output": pooled}]]).pull(torch.cos(x))
    return [parameter.grad for parameter in adapter.parameters.values()]


def linears(model):
    return {n: m for n, m in model.model.diffusion_model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(
    "target, first",
    [("all", "double_blocks.0"), ("attention", "double_blocks.0"), ("single blocks", "single_blocks.0")],
)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_one_input_gradient_for_each_layer_after_the_first_adapter(pack, world, work, target, first, checkpointing):
    base = world[0]
    trained_step(pack, base, target, checkpointing=checkpointing)
    forwards, backwards = work
    layers = linears(base)
    # The modulations' input is the same for all blocks and comes before any adapter. So does the input of the first
    # block, and of its own first layers, unless an adapter on the modulation gets in between.
    blocks = [n for n in layers if "blocks." in n and "mod" not in n and (first < n)]
    if target == "attention":
        blocks = [n for n in blocks if n not in (f"{first}.img_attn.qkv", f"{first}.txt_attn.qkv")]
    assert backwards == Counter(layers[name] for name in [*blocks, "final_layer.linear"])
    again = {n for n, layer in layers.items() if forwards[layer] == 2}
    assert all(forwards[layer] <= 2 for layer in layers.values())
    assert all("blocks." in n and first < n for n in again) and bool(again) == checkpointing


@pytest.mark.parametrize("kept_blocks", [1, 3, 4, 9])
def test_kept_blocks_do_not_run_again_and_change_nothing(pack, world, work, kept_blocks):
    base = world[0]
    expected = trained_step(pack, base)
    work[0].clear()
    got = trained_step(pack, base, kept_blocks=kept_blocks)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    again = {".".join(n.split(".")[:2]) for n, layer in linears(base).items() if work[0][layer] == 2}
    blocks = ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]
    assert again == set(blocks[: -min(kept_blocks, 4)])


def test_parked_inputs_change_nothing(pack, world):
    expected = trained_step(pack, world[0])
    got = trained_step(pack, world[0], offload=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gradient_that_reaches_blocks_inside_of_a_tuple(pack, hidden):
    """Some models pass their modulations so."""
    weight = torch.tensor(2.0, requires_grad=True)
    x = torch.tensor([1.0, 3.0])
    modulation = weight * torch.tensor([5.0, 7.0])
    block = lambda x, modulation: x * (modulation[0] if hidden else modulation)  # noqa: E731
    module = pack("nodes.host.gradients.differentiable")
    block = module._checkpointed(block, trained=False, offload=False, state=module._OpenState())
    for _ in range(2):
        x = block(x, (modulation,) if hidden else modulation)
    x.sum().backward()
    assert weight.grad.item() == pytest.approx(2 * 2 * (25 * 1 + 49 * 3))


@pytest.fixture
def moving_host(monkeypatch):
    """As on a GPU: what is loaded is moved, and so gets a new content."""
    import comfy.model_management

    load = comfy.model_management.load_models_gpu

    def load_and_move(models, *args, **kwargs):
        load(models, *args, **kwargs)
        for patcher in models:
            for tensor in (*patcher.model.parameters(), *patcher.model.buffers()):
                tensor.data = tensor.data.clone()

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load_and_move)


@pytest.mark.parametrize("as_a_node", [False, True])
def test_weights_that_the_host_moves_meanwhile(pack, request, as_a_node):
    """Loader nodes make inference tensors, which only inference mode can move; updates run outside of it."""
    host_flow = pack("nodes.host.flow_model")
    model, adapter = with_adapter(host_model(random_flux()))
    flow = host_flow.HostFlow(model, host_flow.Sampling(steps=1))
    decoder = pack("nodes.host.decoder").HostDecoder(host_vae(random_vae()), model)
    reward = pack("nodes.host.reward").managed(clip_reward(random_clip(), load_tokenizer()))
    noised, context, pooled = sample(1, 500)
    cond = [[context, {"pooled_output": pooled}]]

    def update():
        with torch.inference_mode(as_a_node):
            x0 = flow.rollout(noised.noise, cond, 0)
            frozen = flow.frozen_velocity(x0, torch.tensor([0.8]), cond)
            pull_back(flow, cond, Noised(x0, noised.noise, noised.branches), noised.branches[0], decoder, reward)
        return x0, frozen, *(parameter.grad for parameter in adapter.parameters.values())

    expected = update()
    request.getfixturevalue("moving_host")
    for _ in range(2):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(update(), expected, strict=True))
