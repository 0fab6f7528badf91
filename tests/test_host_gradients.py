"""The host's FLUX, differentiated as it was loaded, against diffusers + peft: the same numbers."""

import pytest
import torch
from oracle import Oracle, host_model, host_vae, random_clip, random_flux, random_vae, with_adapter

from srpo_core.headless.decoder import DiffusersDecoder
from srpo_core.loop import draw_noise
from srpo_core.objective import Objective
from srpo_core.rewards import clip_reward
from srpo_core.schedule import Window
from srpo_core.step import Noised, one_step_recover, score_recovered
from srpo_core.terms import Term
from srpo_core.toy.models import load_tokenizer

PROMPTS = ["a red circle on grass", "a blue square"]


@pytest.fixture(scope="module")
def world(pack):
    """The host's side and the oracle's, fp32."""
    flux, vae, clip = random_flux(), random_vae(), random_clip()
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
    score = score_recovered(recovered, branch, decoder, [Term(reward, Objective(threshold=100.0))], prompts, 1)
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
    flow = pack("nodes.host.flow_model").HostFlow(model, guidance=3.5, checkpointing=checkpointing)
    host_decoder = pack("nodes.host.decoder").HostDecoder(vae, model)
    expected, theirs = pull_back(oracle.flow, {"context": context, "pooled": pooled}, noised, branch, decoder, reward)
    value, ours = pull_back(flow, [[context, {"pooled_output": pooled}]], noised, branch, host_decoder, reward)
    assert relative(value, expected) < 1e-5
    assert relative(ours.image, theirs.image) < 1e-5
    assert relative(ours.gradient, theirs.gradient) < 1e-5
    errors = {n: relative(adapter.parameters[n].grad, g) for n, g in oracle.gradients(adapter).items()}
    assert max(errors.values()) < 1e-5, sorted(errors.items(), key=lambda e: -e[1])[:3]
