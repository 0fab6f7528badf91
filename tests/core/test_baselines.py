"""Objectives of other methods, each against its whole loss written out in one graph."""

from itertools import pairwise

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward, numbers

from srpo_core.algorithm.baselines import DirectAlign, DRaFT, DRaFTLV, FlowBP, ReFL
from srpo_core.algorithm.guard import Guard
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Compared, score_recovered
from srpo_core.algorithm.terms import Term
from srpo_core.algorithm.ways import Traced
from srpo_core.run.draws import Batching
from srpo_core.run.training import Training

FAR = 9.0  # the hinge stays open
SEEDS = (11, 12, 13)
OBJECTIVES = [
    ReFL(threshold=FAR, last_steps=3),
    DRaFT(threshold=FAR, steps=1),
    DRaFT(threshold=FAR, steps=3),
    DRaFT(threshold=FAR, steps=4),
    DRaFTLV(threshold=FAR),
    DRaFTLV(threshold=FAR, noises=3),
    FlowBP(threshold=FAR, steps=2, coupling=0.0),
    FlowBP(threshold=FAR, steps=3, coupling=0.3),
    FlowBP(threshold=FAR, steps=4, coupling=1.0),
]


class World:
    def __init__(self, batch=3, trained=0.0):
        self.flow = TinyFlow()
        self.flow.parameters["bias"].data += trained
        self.batch = batch
        self.prompts = TinyData().prompts[:batch]
        self.cond = TinyData().cond(range(batch))
        noise = numbers(8, batch, *SHAPE)
        trajectory = self.flow.trajectory(noise, self.cond)
        self.sampled = Traced(trajectory.x0, noise, SEEDS[:batch], trajectory)

    def ways(self, objective):
        return list(objective.route.ways(self.sampled, Window(), 0))

    def scores(self, objective, **options):
        for way in self.ways(objective):
            if objective.trains(way.branch):
                terms = [Term(reward=TinyReward(), objective=objective)]
                recovered = way.recover(self.flow, self.cond, **options)
                yield score_recovered(recovered, way.branch, TinyDecoder(), terms, prompts=self.prompts, update=1)

    def gradient(self, objective, **options):
        for parameter in self.flow.parameters.values():
            parameter.grad = None
        for score in self.scores(objective, **options):
            score.pull(1 / self.batch)
        return [parameter.grad for parameter in self.flow.parameters.values()]

    def loss(self, latent, sample):
        """relu(threshold - R(image, prompt)), straight."""
        image = TinyDecoder().forward(latent[None]).clamp(0, 1)[0]
        return torch.relu(FAR - TinyReward().one(image, self.prompts[sample]))

    def velocity(self, x, sigma, sample):
        return self.flow.forward(x[None], sigma[None], self.cond[sample : sample + 1])[0]

    def straight(self, objective, sample):
        """The scored latents of one sample, with their graphs, from the methods' own formulas."""
        sigmas = self.sampled.trajectory.sigmas
        states = self.sampled.trajectory.states[:, sample]
        ways = self.ways(objective)
        match objective:
            case ReFL():
                sigma = ways[0].branch.sigma_in[sample]
                step = sigmas.tolist().index(sigma.item())
                assert step >= len(sigmas) - 1 - objective.last_steps
                return [states[step] - sigma * self.velocity(states[step], sigma, sample)]
            case DRaFTLV():
                noised = [(1 - sigmas[-2]) * states[-1] + sigmas[-2] * way.noised.noise[sample] for way in ways]
                return [x - sigmas[-2] * self.velocity(x, sigmas[-2], sample) for x in noised]
            case DRaFT():
                x = states[-1 - objective.steps]
                for before, after in pairwise(sigmas[-1 - objective.steps :]):
                    x = x + (after - before) * self.velocity(x, before, sample)
                return [x]
            case FlowBP():
                return [self.surrogate(objective, ways[0].chosen[sample].tolist(), sample)]

    def surrogate(self, objective, chosen, sample):
        """Euler's sum over the chosen steps; where they couple, the split step sees what came of those before it."""
        sigmas = self.sampled.trajectory.sigmas
        states = self.sampled.trajectory.states[:, sample]
        split = next((s for s, c in zip(chosen, self.ways(objective)[0].coupling[sample]) if c), None)
        scale = 1 / sum(sigmas[step] - sigmas[step + 1] for step in chosen)
        moved = torch.zeros(SHAPE, dtype=torch.float64)
        for step in chosen:
            x = states[step]
            if step == split:
                x = x + objective.coupling * (moved - moved.detach())
            moved = moved + scale * (sigmas[step + 1] - sigmas[step]) * self.velocity(x, sigmas[step], sample)
        return states[-1] + moved - moved.detach()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradient_is_that_of_the_methods_own_loss(objective):
    world = World()
    losses = []
    for sample in range(world.batch):
        latents = world.straight(objective, sample)
        losses += [world.loss(latent, sample) / len(latents) for latent in latents]
    expected = torch.autograd.grad(sum(losses) / world.batch, list(world.flow.parameters.values()))
    for found, gradient in zip(world.gradient(objective), expected):
        assert gradient.norm() > 1e-4
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-9)


def test_whole_rollout_is_back_propagation_through_the_sampler():
    world = World(batch=1)
    x = world.sampled.noise[0]
    for before, after in pairwise(world.sampled.trajectory.sigmas):
        x = x + (after - before) * world.velocity(x, before, 0)
    torch.testing.assert_close(x, world.sampled.x0[0], rtol=0, atol=1e-12)
    expected = torch.autograd.grad(world.loss(x, 0), list(world.flow.parameters.values()))
    for found, gradient in zip(world.gradient(DRaFT(threshold=FAR, steps=4)), expected):
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-9)


def test_direct_align_alone_is_the_denoise_branch_with_the_plain_reward():
    world = World()
    (score,) = world.scores(DirectAlign(threshold=FAR))
    (srpo,) = world.scores(Objective(branches="denoise"))
    assert score.branch.name == "denoise"
    torch.testing.assert_close(score.image, srpo.image)
    for sample, loss in enumerate(score.loss):
        reward = TinyReward().one(score.image[sample], world.prompts[sample])
        torch.testing.assert_close(loss, FAR - reward, rtol=0, atol=1e-12)


def test_nothing_beyond_the_threshold_is_learned():
    world = World()
    assert all(not gradient.any() for gradient in world.gradient(ReFL(threshold=-9.0, last_steps=4)))


@pytest.mark.parametrize(
    "objective", [ReFL(threshold=FAR, last_steps=4), FlowBP(threshold=FAR, steps=3, coupling=0.0)], ids=str
)
def test_a_guard_holds_the_velocities_that_train(objective):
    world = World(trained=0.3)
    guard = Guard(distance_weight=2.0)
    held = {"compared": Compared(world.batch, world.cond), "guard": guard}
    guarded = world.gradient(objective, **held)
    plain = world.gradient(objective)
    (way,) = world.ways(objective)
    trajectory = world.sampled.trajectory
    sigmas = way.branch.sigma_in[None] if isinstance(objective, ReFL) else trajectory.sigmas[way.chosen.T]
    losses = 0.0
    for sigma in sigmas:
        x = trajectory.state(torch.searchsorted(-trajectory.sigmas, -sigma))
        frozen = world.flow.frozen_velocity(x, sigma, world.cond)
        losses = losses + guard.loss(world.flow.forward(x, sigma, world.cond), frozen) / len(sigmas)
    added = torch.autograd.grad(losses.sum() / world.batch, list(world.flow.parameters.values()))
    for with_it, without, expected in zip(guarded, plain, added):
        assert expected.norm() > 1e-6
        torch.testing.assert_close(with_it - without, expected, rtol=0, atol=1e-9)
    (score,) = world.scores(objective, **held)
    torch.testing.assert_close(score.recovered.guard_loss, losses.detach(), rtol=0, atol=1e-9)


def chosen_of(sampled, coupling, pair):
    (way,) = FlowBP(steps=2, coupling=coupling).route.ways(sampled, Window(), pair)
    return way.chosen


@pytest.mark.parametrize("coupling", [0.0, 0.1])
def test_steps_are_drawn_by_the_samples_own_seeds(coupling):
    sampled = World().sampled
    chosen = torch.cat([chosen_of(sampled, coupling, pair) for pair in range(100)])
    assert (chosen.diff(dim=1) > 0).all()
    assert torch.bincount(chosen.flatten(), minlength=4).min() > 0
    together = chosen_of(sampled, coupling, 7)
    assert torch.equal(together[1:2], chosen_of(sampled.part(slice(1, 2)), coupling, 7))


def test_late_steps_are_drawn_more_often():
    chosen = torch.cat([chosen_of(World().sampled, 0.0, pair) for pair in range(100)])
    counts = torch.bincount(chosen.flatten(), minlength=4)
    assert (counts.diff() > 0).all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: ReFL(last_steps=0), "last_steps is 0"),
        (lambda: DRaFT(steps=0), "steps is 0"),
        (lambda: DRaFTLV(noises=0), "noises is 0"),
        (lambda: FlowBP(steps=1), "steps is 1: give a whole number, 2 or more"),
        (lambda: FlowBP(coupling=1.5), "coupling is 1.5"),
        (lambda: FlowBP(late_bias=-1.0), "late_bias is -1.0"),
        (lambda: ReFL(threshold=float("nan")), "threshold is nan"),
        (lambda: World().ways(DRaFT(steps=9)), "steps is 9, and a rollout has 4 steps: set it to 4 at most"),
        (lambda: World().ways(ReFL(last_steps=9)), "last_steps is 9, and a rollout has 4 steps"),
        (lambda: World().ways(FlowBP(steps=9)), "steps is 9, and a rollout has 4 steps"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_the_number(make, said):
    with pytest.raises(ValueError, match=said):
        make()


class Photos(TinyData):
    def shape(self, index):
        return SHAPE

    def latents(self, indices):
        return torch.stack([numbers(50 + i, *SHAPE) for i in indices])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"dataset": Photos()}, "ReFL trains through the steps of a rollout, which photos have not"),
        ({"photos": Photos()}, "which photos have not"),
        ({"batching": Batching(shape=SHAPE, reuse=2)}, "reuse is 2, and ReFL"),
    ],
)
def test_photos_and_old_rollouts_are_refused_where_the_sampler_is_trained_through(options, said):
    usual = {"flow": TinyFlow(), "decoder": TinyDecoder(), "dataset": TinyData(), "batching": Batching(shape=SHAPE)}
    with pytest.raises(ValueError, match=said):
        Training(**usual | options, terms=[Term(reward=TinyReward(), objective=ReFL())])
    Training(**usual | options, terms=[Term(reward=TinyReward(), objective=DirectAlign())])
