"""Training through the sampler: its steps are the host's Euler sampler, and the gradient reaches its states."""

import families
import pytest
import torch
from families import FAMILIES
from in_process import new_flow, pack_module
from model_checks import SHARE, STEP, adapted, central, in_double, relative, velocity
from tiny_world import numbers

from srpo_core.algorithm.baselines import DRaFT
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.ways import Traced

pytestmark = pytest.mark.usefixtures("pack")

BY_NAME = {family.name: family for family in FAMILIES}
DOSE = ("FLUX.1 dev", "Z-Image", "Qwen-Image", "SD 1.5")  # two kinds of flow, one frame, one that is no flow
STEPS = 3


def sampling(**options):
    return pack_module("nodes.host.sampling").Sampling(steps=STEPS, **options)


@pytest.mark.parametrize("name", DOSE)
def test_the_trajectory_ends_where_the_hosts_sampler_does(name):
    family = BY_NAME[name]
    model, _ = adapted(families.patcher(family))
    flow = new_flow(model, sampling())
    noise = numbers(3, 1, *family.latent, dtype=torch.float32)
    cond = families.prompt(family)
    trajectory = flow.trajectory(noise, cond)
    assert trajectory.steps == STEPS and trajectory.sigmas[-1] == 0
    assert relative(trajectory.x0, flow.rollout(noise, cond, 0)) < 2e-5


@pytest.mark.parametrize("name", DOSE)
def test_the_gradient_at_a_state_is_that_of_the_hosts_samples(name):
    family = BY_NAME[name]
    with in_double():
        model, _ = adapted(families.patcher(family, dtype=torch.float64))
        x = families.latent(family).double()
        cond = families.prompt(family)
        weights = torch.cos(9 * torch.arange(x.numel()).double()).view(x.shape)
        along = numbers(5, *x.shape)
        flow = new_flow(model)
        found = flow.velocity(x, torch.tensor([SHARE]).double(), cond, through_x=True).pull(weights)
        theirs = central(lambda steps: (velocity(model, x + STEP * steps * along, cond) * weights).sum().item(), STEP)
        assert flow.velocity(x, torch.tensor([SHARE]).double(), cond).pull(weights) is None
    assert abs((found * along).sum().item() - theirs) < 1e-5 * abs(theirs)


def test_back_through_the_whole_sampler():
    """DRaFT over all steps, against how far the host's own rollouts differ."""
    family = BY_NAME["FLUX.1 dev"]
    with in_double():
        model, adapter = adapted(families.patcher(family, dtype=torch.float64))
        flow = new_flow(model, sampling())
        noise = numbers(3, 1, *family.latent)
        cond = families.prompt(family)
        weights = numbers(4, 1, *family.latent)
        trajectory = flow.trajectory(noise, cond)
        sampled = Traced(trajectory.x0, noise, (1,), trajectory)
        (way,) = DRaFT(steps=STEPS).route.ways(sampled, Window(), 0)
        way.recover(flow, cond).pull(weights, 1.0)
        name, parameter = next((n, p) for n, p in adapter.parameters.items() if p.grad is not None and p.grad.any())
        along = numbers(6, *parameter.shape)
        before = parameter.data.clone()

        def ask(steps):
            parameter.data.copy_(before + STEP * steps * along)
            return (flow.rollout(noise, cond, 0) * weights).sum().item()

        theirs = central(ask, STEP)
        ours = (parameter.grad * along).sum().item()
    assert abs(ours - theirs) < 1e-5 * abs(theirs), name


@pytest.mark.parametrize(
    "rollouts, guidance, said",
    [
        ({"sampler_name": "dpmpp_2m"}, None, "the sampler is dpmpp_2m, so choose euler"),
        ({"guidance": 1.0}, 3.5, "SRPO Rollouts has guidance 1 and cfg 1, SRPO Train has guidance 3.5 and cfg 1"),
    ],
)
def test_rollouts_that_are_not_the_trained_steps_are_refused(rollouts, guidance, said):
    family = BY_NAME["FLUX.1 dev"]
    model, _ = adapted(families.patcher(family))
    flow = new_flow(model, sampling(**rollouts), guidance)
    with pytest.raises(ValueError, match=said):
        flow.trajectory(numbers(3, 1, *family.latent, dtype=torch.float32), families.prompt(family))
