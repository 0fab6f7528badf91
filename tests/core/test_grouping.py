"""How many samples share a forward, and in which order they come, changes nothing."""

from dataclasses import replace

import pytest
import torch
from tiny_run import world
from tiny_world import SHAPE, TinyData, TinyReward, numbers

from srpo_core.algorithm.baselines import DirectAlign, DRaFT, DRaFTLV, FlowBP, ReFL
from srpo_core.algorithm.direct_align import euler_step, inject, recover
from srpo_core.algorithm.guard import NO_GUARD, Guard
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Noised, normalise, one_step_recover, score_recovered
from srpo_core.algorithm.terms import Term, combine
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores

FAR = Objective(threshold=9.0)  # the hinge stays open
EXACT = Settings(learning_rate=1e-2, max_gradient_norm=1e9)


class Textless(TinyReward):
    reads_text = False

    def score_many(self, images, *texts):
        return super().score_many(images, *[[""] * len(images) for _ in texts])


class InOtherUnits(TinyReward):
    def score_many(self, images, *texts):
        return 300 * super().score_many(images, *texts) - 20


TERMS = {
    "one": [Term(reward=TinyReward(), objective=FAR)],
    "several": [
        Term(reward=TinyReward(), objective=FAR),
        Term(reward=InOtherUnits(), objective=replace(FAR, threshold=500.0), weight=0.5, name="units"),
        Term(reward=TinyReward(), objective=replace(FAR, branches="inversion"), weight=0.7, name="inversion"),
        Term(reward=Textless(), objective=FAR, weight=0.0, name="watching"),
    ],
    "text-free": [Term(reward=Textless(), objective=FAR)],
    "random words": [Term(reward=TinyReward(), objective=replace(FAR, order="random"))],
    "Direct-Align alone": [Term(reward=TinyReward(), objective=DirectAlign(threshold=9.0))],
}
THROUGH_THE_SAMPLER = {
    "several": [
        Term(reward=TinyReward(), objective=ReFL(threshold=9.0, last_steps=3)),
        Term(reward=TinyReward(), objective=FlowBP(threshold=9.0, steps=3), name="sparse"),
        Term(reward=TinyReward(), objective=FAR, name="srpo"),
        Term(reward=TinyReward(), objective=FAR, weight=0.0, name="watching"),
    ],
    "DRaFT": [Term(reward=TinyReward(), objective=DRaFT(threshold=9.0, steps=3))],
    "DRaFT-LV": [Term(reward=TinyReward(), objective=DRaFTLV(threshold=9.0))],
}


class Photos(TinyData):
    """Photos of two shapes."""

    def __init__(self, count=5):
        self.prompts = [f"photo {i}" for i in range(count)]

    def cond(self, indices):
        return torch.tensor(indices, dtype=torch.float64) / 7

    def shape(self, index):
        return SHAPE if index % 2 else (2, 6, 4)

    def latents(self, indices):
        return torch.stack([numbers(50 + i, *self.shape(i)) for i in indices])


def gone(folder, batching, terms, guard, photos, updates=2):
    parts = world(dtype=torch.float64) | {"terms": combine(terms)}
    run = Run(folder, parts["flow"].parameters, EXACT)
    train(run, Training(batching=batching, guard=guard, photos=photos, **parts), updates)
    return run


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize(
    "guard, pairs, photos",
    [(NO_GUARD, 1, None), (Guard(norm_weight=0.3, distance_weight=0.2), 2, Photos())],
    ids=["plain", "guard, pairs, photos"],
)
def test_at_once_changes_nothing(tmp_path, terms, guard, pairs, photos):
    batching = Batching(shape=SHAPE, batch=4, pairs=pairs, photo_share=0.5)
    one = gone(tmp_path / "1", batching, terms, guard, photos)
    for at_once, sampled in ((2, 1), (4, 4), (1, 4)):
        together = replace(batching, at_once=at_once, sampled_at_once=sampled)
        many = gone(tmp_path / f"{at_once} {sampled}", together, terms, guard, photos)
        for name, parameter in one.parameters.items():
            torch.testing.assert_close(many.parameters[name], parameter, rtol=0, atol=1e-9)
        for metrics, expected in zip(many.history, one.history):
            assert metrics == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("terms", THROUGH_THE_SAMPLER.values(), ids=THROUGH_THE_SAMPLER)
def test_at_once_changes_nothing_where_the_sampler_is_trained_through(tmp_path, terms):
    test_at_once_changes_nothing(tmp_path, terms, Guard(distance_weight=0.2), 2, None)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_the_order_of_the_samples_changes_nothing(tmp_path, terms):
    """What is averaged is a set: scores pulled in any order come to the same."""
    found = []
    for order in (1, -1):
        parts = world(dtype=torch.float64) | {"terms": combine(terms)}
        run = Run(tmp_path / str(order), parts["flow"].parameters, EXACT)
        scores = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=4), **parts)))
        found.append(make_update(run, scores[::order], 4))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_no_sample_of_a_first_update_outweighs_the_others(tmp_path):
    """By its own two answers a sample would be scaled by anything; the factor of all is one."""
    parts = world(dtype=torch.float64) | {"terms": combine(TERMS["several"])}
    run = Run(tmp_path, parts["flow"].parameters, EXACT)
    scores = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=8), **parts)))
    make_update(run, scores, 8)
    std = {name: spread.std for name, spread in run.spreads.items()}
    weights = {term.name: term.weight for term in parts["terms"]}
    for score in scores:
        expected = sum(weights[a.name] / std[a.name] * a.loss for a in score.answers)
        torch.testing.assert_close(score.loss, expected.to(score.loss), rtol=1e-6, atol=0)


@pytest.mark.parametrize("parts_of", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 1], [0, 2]]], ids=str)
def test_scores_of_the_graph_are_scaled_as_those_of_the_loop(parts_of):
    """One score for each reward and group, as the nodes make them, normalised where all of an update meet."""
    update = 1
    factors = {}
    noised = Noised(numbers(7, 4, *SHAPE), numbers(8, 4, *SHAPE), Window().branches([40, 500, 900, 300]), (1, 2, 3, 4))
    scores = []
    for part in parts_of:
        parts = world(dtype=torch.float64)
        here = Noised(noised.x0[part], noised.noise[part], Window().branches([[40, 500, 900, 300][i] for i in part]))
        for branch in here.branches:
            recovered = one_step_recover(parts["flow"], torch.tensor(part) / 3, here, branch)
            for term in TERMS["several"][:2]:
                texts = [f"picture {i}" for i in part]
                scores.append(
                    score_recovered(recovered, branch, parts["decoder"], [term], prompts=texts, update=update)
                )
    for before, after in zip(scores, normalise(scores, {})):
        factors.setdefault(before.answers[0].name, []).append((after.gradient.norm() / before.gradient.norm()).item())
    said = {name: [a for s in scores for a in s.answers if a.name == name] for name in factors}
    for name, found in factors.items():
        values = torch.cat([value for answer in said[name] for value in (answer.positive, answer.negative)])
        assert found == pytest.approx([1 / values.std(unbiased=False).item()] * len(found))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_latents_in_half_precision_are_computed_in_fp32(kind):
    """The identity `x0_hat = x0 + w e`, to fp32's rounding, on what came in half precision."""
    x0, noise, velocity = (numbers(seed, 3, *SHAPE, dtype=kind) for seed in (1, 2, 3))
    for branch in Window().branches([40, 500, 990]):
        x = inject(x0, noise, branch.sigma_in)
        stepped = euler_step(x, velocity, branch.sigma_in, branch.sigma_out)
        found = recover(stepped, noise, branch.sigma_out)
        assert x.dtype == stepped.dtype == found.dtype == torch.float32
        w = branch.error_gain.view(-1, 1, 1, 1) * (1 if branch.name == "denoise" else -1)
        expected = x0.double() + w * (noise.double() - x0.double() - velocity.double())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_double_precision_stays():
    x0 = numbers(1, 1, *SHAPE)
    noise = numbers(2, 1, *SHAPE)
    assert inject(x0, noise, torch.tensor([0.9])).dtype == torch.float64


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_rollouts_train_as_their_fp32_copies(tmp_path, kind):
    runs = []
    for back in (kind, torch.float32):
        parts = world()
        rollout = parts["flow"].rollout
        parts["flow"].rollout = lambda *args, rollout=rollout, back=back: rollout(*args).to(kind).to(back)
        run = Run(tmp_path / str(back), parts["flow"].parameters, EXACT)
        train(run, Training(batching=Batching(shape=SHAPE, batch=3), **parts), 2)
        runs.append(run)
    for name, parameter in runs[0].parameters.items():
        assert torch.equal(parameter, runs[1].parameters[name])


def test_samplers_that_draw_noise_are_given_one_picture_at_a_time(tmp_path):
    found = []
    for at_once in (1, 4):
        parts = world(dtype=torch.float64)
        flow = parts["flow"]
        rollout = parts["flow"].rollout

        def drawing(noise, cond, seed, rollout=rollout):
            generator = torch.Generator().manual_seed(seed)
            return rollout(noise, cond, seed) + torch.randn(noise.shape, generator=generator)

        flow.rollout = drawing
        flow.samples_depend_on_batch = True
        run = Run(tmp_path / str(at_once), flow.parameters, EXACT)
        train(run, Training(batching=Batching(shape=SHAPE, batch=4, at_once=at_once), **parts), 1)
        found.append(run.history[0])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
