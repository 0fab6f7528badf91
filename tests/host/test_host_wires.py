"""Wrong wires in a graph: the run that they would spoil says so, and the other goes on as if nothing had been."""

import prompts
import pytest
import torch
from host_server import HostError
from safetensors.torch import load_file


def state(host, run: str) -> dict[str, torch.Tensor]:
    return load_file(host.base / "output/srpo" / run / "state.safetensors")


def step(run: str, number: int) -> dict:
    return prompts.one_step(run, prompts.noise_seed(number))


def with_another_run(prompt: dict, run: str) -> dict:
    prompt["trainer b"] = prompts.base(run)["trainer"]
    return prompt


def test_scores_of_another_run_are_refused_and_spoil_neither(host):
    for number in range(2):
        host.run(step("wire straight", number))
    host.run(step("wire a", 0))
    wrong = with_another_run(step("wire a", 1), "wire b")
    wrong["step"]["inputs"]["trainer"] = ["trainer b", 0]
    with pytest.raises(HostError, match='of another run\'s MODEL, so the run "wire b" can learn nothing'):
        host.run(wrong)
    host.run(step("wire a", 1))
    for run in ("wire a", "wire b"):
        if run == "wire b":
            for number in range(2):
                host.run(step(run, number))
        got = state(host, run)
        straight = state(host, "wire straight")
        assert all(torch.equal(got[key], value) for key, value in straight.items()), run


def test_scores_of_a_plain_model_are_refused(host):
    plain = step("wire plain", 0)
    plain["recover"]["inputs"]["model"] = ["toy", 0]
    with pytest.raises(HostError, match='a MODEL with nothing to train, so the run "wire plain"'):
        host.run(plain)


def test_one_update_has_one_train_step(host):
    """The second would take a gradient that belongs to the weights before the first."""
    twice = step("wire twice", 0)
    twice["step 2"] = prompts.node("SRPO_TrainStep", trainer=["trainer", 0], **{"rewards.reward0": ["reward", 0]})
    with pytest.raises(HostError, match="made for update 1 .* the next one is 2: .*one Train Step"):
        host.run(twice)


def test_a_reward_that_only_watches_is_no_update(host):
    watching = step("wire watching", 0)
    watching["reward"]["inputs"]["weight"] = 0.0
    with pytest.raises(HostError, match="all watch and none trains"):
        host.run(watching)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_taken_to_fp32(pack, kind):
    """Between Noise-Prior Inject and One-Step Recover, an exact model gives back x0 as it came."""
    from types import SimpleNamespace

    import comfy.sample

    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 16, 8, 8, generator=generator).to(kind)
    toy = pack("nodes.host.toy").load_model()
    noise = SimpleNamespace(seed=3, generate_noise=lambda latent: comfy.sample.prepare_noise(latent["samples"], 3))
    for position in (0, 900):
        inject = pack("nodes.steps").NoisePriorInject.execute
        noised, start, _ = inject(model=toy, latent={"samples": samples}, noise=noise, position=position).args
        exact = toy.model.process_latent_in(samples.float())
        assert noised.x0.dtype == noised.noise.dtype == start["samples"].dtype == torch.float32
        torch.testing.assert_close(noised.x0, exact, rtol=0, atol=1e-6)
        assert len(set(noised.seeds)) == 2 and noised.seeds[0] == 3
        sigma = noised.branches[0].sigma_in.view(-1, 1, 1, 1).float()
        expected = (1 - sigma) * exact + sigma * noised.noise
        found = toy.model.process_latent_in(start["samples"])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
