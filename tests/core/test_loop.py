"""The loop: which prompts, photos, noise and noise levels an update takes."""

from dataclasses import replace

import pytest
import torch
from tiny_run import SETTINGS, TWO, checked, go, same, state, world
from tiny_world import SHAPE, TinyData, TinyReward, numbers

from srpo_core.algorithm.objective import Objective
from srpo_core.run.draws import Batching, draw_noise, draw_seed, draws_of, prompt_index
from srpo_core.run.loop import prepare_data, train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import sample_scores


@pytest.mark.parametrize("at_once, sampled_at_once", [(8, 1), (3, 1), (1, 8), (2, 5), (3, 8)])
def test_many_at_once_is_one_by_one_accumulated(tmp_path, at_once, sampled_at_once):
    one = go(tmp_path / "one", 3, Batching(shape=SHAPE, batch=8, at_once=1), dtype=torch.float64)
    together = Batching(shape=SHAPE, batch=8, at_once=at_once, sampled_at_once=sampled_at_once)
    many = go(tmp_path / "many", 3, together, dtype=torch.float64)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(many.parameters[name], parameter, rtol=0, atol=1e-6)
    for metrics, expected in zip(many.history, one.history):
        assert metrics == pytest.approx(expected, abs=1e-6)


def test_the_first_update_is_number_one(tmp_path):
    reward = TinyReward()
    run = go(tmp_path, 2, Batching(shape=SHAPE), reward=reward)
    words = [(positive[0].split(".")[0], negative[0].split(".")[0]) for positive, negative in reward.asked]
    assert words == [("Detail", "Painting")] * 2 + [("Detailed", "Anime")] * 2
    assert [metrics["update"] for metrics in run.history] == [1, 2] and run.updates == 2


def test_draw_noise_is_what_the_host_draws():
    noise = draw_noise([7, 8, 2**64 - 1], (16, 4, 6))
    assert noise.dtype == torch.float32
    for sample, seed in zip(noise, (7, 8, 2**64 - 1)):
        torch.manual_seed(seed)
        assert torch.equal(sample, torch.randn(1, 16, 4, 6)[0])


def test_the_largest_seed_of_the_host_is_one(tmp_path):
    run = go(tmp_path, 2, Batching(shape=SHAPE, seed=2**64 - 1))
    assert run.updates == 2


def test_nothing_draws_from_the_global_random_state(tmp_path):
    before = torch.get_rng_state()
    go(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prompts", [1, 2, 7])
def test_every_prompt_comes_once_per_round(prompts):
    rounds = [[prompt_index(3, r * prompts + i, prompts) for i in range(prompts)] for r in range(20)]
    assert all(sorted(order) == list(range(prompts)) for order in rounds)
    if prompts == 7:
        assert len(set(map(tuple, rounds))) > 15
        assert rounds != [[prompt_index(4, r * 7 + i, 7) for i in range(7)] for r in range(20)]


def test_rounds_run_on_through_updates_and_restarts(tmp_path):
    asked = []
    for updates in (2, 1, 2):
        reward = TinyReward()
        go(tmp_path, updates, TWO, reward=reward)
        asked += [positive[0].split(". ")[1] for positive, _ in reward.asked[::2]]  # the denoise branch's
    assert sorted(asked[:5]) == sorted(asked[5:]) == TinyData().prompts


def test_a_branch_switched_off_is_not_scored(tmp_path):
    parts = world(objective=Objective(branches="inversion"))
    run = Run(tmp_path, parts["flow"].parameters, SETTINGS)
    scores = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=3), **parts)))
    assert [score.branch.name for score in scores] == ["inversion"] * 3


def test_the_noise_prior_is_the_rollouts_own_noise(tmp_path):
    """Direct-Align recovers x0 with the noise it was rolled out from, each sample with its own."""
    seen = {}
    parts = world(dtype=torch.float64)
    flow = parts["flow"]
    rollout = flow.rollout
    velocity = flow.velocity

    def remember_rollout(noise, cond, *seed):
        seen.update(noise=noise, x0=rollout(noise, cond, *seed))
        return seen["x0"]

    def remember_velocity(x, sigma, cond):
        s = sigma.view(-1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - s) * seen["x0"] + s * seen["noise"], rtol=0, atol=1e-6)
        return velocity(x, sigma, cond)

    flow.rollout = remember_rollout
    flow.velocity = remember_velocity
    run = checked(Run(tmp_path, flow.parameters, SETTINGS), flow)
    two = Batching(shape=SHAPE, batch=2, at_once=2, seed=5)
    assert len(list(sample_scores(run, Training(batching=two, **parts)))) == 2
    batching = Batching(shape=SHAPE, seed=5)
    assert torch.equal(seen["noise"], draw_noise([draw_seed(batching, 0), draw_seed(batching, 1)], SHAPE))
    assert not torch.equal(numbers(5, *SHAPE), seen["noise"][0])


def noise_and_levels(folder, batching):
    """What two updates roll out from, and the noise levels that they ask the model at."""
    rolled = []
    levels = []
    parts = world()
    rollout = parts["flow"].rollout
    velocity = parts["flow"].velocity
    parts["flow"].rollout = lambda noise, *rest: rolled.extend(noise) or rollout(noise, *rest)
    parts["flow"].velocity = lambda x, sigma, cond: levels.extend(sigma.tolist()) or velocity(x, sigma, cond)
    run = checked(Run(folder, parts["flow"].parameters, SETTINGS), parts["flow"])
    train(run, Training(batching=batching, **parts), 2)
    return torch.stack(rolled), levels


@pytest.mark.parametrize("at_once", [1, 3])
def test_prompts_of_an_update_may_share_a_noise_but_not_their_noise_levels(tmp_path, at_once):
    batching = Batching(shape=SHAPE, batch=3, at_once=at_once, seed=5)
    own, levels = noise_and_levels(tmp_path / "own", batching)
    shared, same_levels = noise_and_levels(tmp_path / "shared", replace(batching, shared_noise=True))
    seeds = [draw_seed(batching, number) for number in range(6)]
    assert torch.equal(own, draw_noise(seeds, SHAPE))
    assert torch.equal(shared, draw_noise([seeds[0]] * 3 + [seeds[3]] * 3, SHAPE))
    assert same_levels == levels and len(set(levels)) == 12


# Photos


class PhotoData(TinyData):
    """Five photos of two shapes."""

    def shape(self, index):
        return (2, 4, 4) if index % 2 else (2, 6, 4)

    def latents(self, indices):
        assert len({self.shape(i) for i in indices}) == 1
        return torch.stack([numbers(100 + i, *self.shape(i), dtype=torch.float32) for i in indices])


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_photos_take_the_place_of_rollouts(tmp_path, at_once):
    parts = world() | {"dataset": PhotoData()}
    parts["flow"].rollout = None
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    train(run, Training(batching=Batching(shape=SHAPE, batch=5, at_once=at_once), **parts), 3)
    alone = world() | {"dataset": PhotoData()}
    one = Run(tmp_path / "one", alone["flow"].parameters, SETTINGS)
    train(one, Training(batching=Batching(shape=SHAPE, batch=5), **alone), 3)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(run.parameters[name], parameter, rtol=0, atol=1e-6)


# Several pairs of branches of one rollout


def test_pairs_share_a_rollout_and_have_their_own_noise_levels(tmp_path):
    parts = world()
    rollout = parts["flow"].rollout
    rolled = []
    parts["flow"].rollout = lambda *arguments: rolled.append(1) or rollout(*arguments)
    run = Run(tmp_path, parts["flow"].parameters, SETTINGS)
    scores = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=2, pairs=3), **parts)))
    assert len(rolled) == 2 and len(scores) == 2 * 3 * 2
    levels = {score.branch.sigma_out.item() for score in scores if score.branch.name == "denoise"}
    assert len(levels) == 6
    first = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts)))
    assert [s.branch.sigma_out.item() for s in scores[:2]] == [s.branch.sigma_out.item() for s in first[:2]]


def test_the_gradient_of_pairs_is_their_mean(tmp_path):
    parts = world(dtype=torch.float64)
    run = Run(tmp_path, parts["flow"].parameters, Settings(max_gradient_norm=1e9))
    norms = []
    for pairs in (1, 2):
        scores = list(sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=1, pairs=pairs), **parts)))
        for score in scores:
            score.pull(1 / pairs)
        norms.append({name: p.grad.clone() for name, p in parts["flow"].parameters.items()})
        run.optimizer.zero_grad()
    with_pairs = go(tmp_path / "pairs", 1, Batching(shape=SHAPE, batch=1, pairs=2), dtype=torch.float64)
    expected = torch.cat([g.flatten() for g in norms[1].values()]).norm().item()
    assert with_pairs.history[0]["gradient_norm"] == pytest.approx(expected, rel=1e-9)
    assert norms[0]["mix"].ne(norms[1]["mix"]).any()


# Rollouts that serve several updates


def rollouts_of(parts, rolled):
    rollout = parts["flow"].rollout
    parts["flow"].rollout = lambda noise, *rest: rolled.append(len(noise)) or rollout(noise, *rest)
    return parts


def test_rollouts_are_reused_at_new_noise_levels(tmp_path):
    rolled = []
    levels = []
    clean = []
    parts = rollouts_of(world(), rolled)
    velocity = parts["flow"].velocity
    parts["flow"].velocity = lambda x, sigma, cond: levels.append(sigma.item()) or velocity(x, sigma, cond)
    run = checked(Run(tmp_path, parts["flow"].parameters, SETTINGS), parts["flow"])
    reused = Batching(shape=SHAPE, batch=2, reuse=3)
    train(run, Training(batching=reused, **parts), 6, lambda _: clean.append(dict(run.rollouts)))
    assert rolled == [1] * 4 and len(levels) == 6 * 2 * 2 and len(set(levels)) > 20
    assert all(torch.equal(clean[0][name], clean[2][name]) for name in clean[0]) and len(clean[2]) == 2
    assert not clean[0].keys() & clean[3].keys()  # what is no longer needed is not kept


@pytest.mark.parametrize("first", [1, 2, 4])
def test_reused_rollouts_outlive_a_restart(tmp_path, first):
    batching = Batching(shape=SHAPE, batch=2, reuse=3)
    rolled = []
    straight = go(tmp_path / "straight", 6, batching)
    go(tmp_path / "pieces", first, batching)
    parts = rollouts_of(world(), rolled)
    run = Run(tmp_path / "pieces", parts["flow"].parameters, SETTINGS)
    train(run, Training(batching=batching, **parts), 6 - first)
    assert same(state(run), state(straight)) and run.history == straight.history
    assert sum(rolled) == (0 if first == 4 else 2)


# Photos beside prompts


@pytest.mark.parametrize("share", [0.25, 0.4, 1.0])
def test_photos_take_their_share(share):
    data = TinyData()
    photos = PhotoData(4)
    batching = Batching(shape=SHAPE, batch=5, photo_share=share)
    draws = [draw for update in range(20) for draw in draws_of(update, batching, data, photos)]
    assert [draw.number for draw in draws] == list(range(100))
    of_photos = [draw.data is photos for draw in draws]
    assert sum(of_photos) == round(100 * share)
    for start in range(0, 100, 20):  # evenly
        assert sum(of_photos[start : start + 20]) == round(20 * share)
    for kind, count in ((photos, 4), (data, 5)):
        indices = [draw.index for draw in draws if draw.data is kind]
        assert all(sorted(indices[i : i + count]) == list(range(count)) for i in range(0, len(indices) - count, count))


def test_photos_and_prompts_share_an_update(tmp_path):
    rolled = []
    asked = TinyReward()
    parts = rollouts_of(world(asked), rolled)
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    batching = Batching(shape=SHAPE, batch=4, at_once=4, photo_share=0.5)
    train(run, Training(batching=batching, photos=PhotoData(), **parts), 3)
    assert rolled == [2] * 3
    for at_once, restart in ((1, False), (4, True)):
        again = Batching(shape=SHAPE, batch=4, at_once=at_once, photo_share=0.5)
        for updates in (1, 2) if restart else (3,):
            parts = world()
            other = Run(tmp_path / str(at_once), parts["flow"].parameters, SETTINGS)
            train(other, Training(batching=again, photos=PhotoData(), **parts), updates)
        for name, parameter in other.parameters.items():
            torch.testing.assert_close(parameter, run.parameters[name], rtol=0, atol=1e-6)


def test_rewards_are_told_of_the_photos_captions_before(tmp_path):
    class Prepared(TinyReward):
        def prepare(self, texts):
            self.prepared = texts

    class Captioned(PhotoData):
        def __init__(self):
            self.prompts = ["my photo"]

    reward = Prepared()
    parts = world(reward)
    run = Run(tmp_path, parts["flow"].parameters, SETTINGS)
    train(run, Training(batching=Batching(shape=SHAPE, batch=2, photo_share=0.5), photos=Captioned(), **parts), 2)
    asked = {text for texts in reward.asked for row in texts for text in row}
    assert asked == set(reward.prepared) and any("my photo" in text for text in asked)


# What is encoded before


class Heard(TinyData):
    """Remembers what it was told of, and takes nothing that it was not."""

    def __init__(self, count=5):
        super().__init__(count)
        self.told = []

    def prepare(self, indices):
        self.told.append(indices)

    def cond(self, indices):
        assert set(indices) <= {index for told in self.told for index in told}
        return super().cond(indices)


class HeardPhotos(PhotoData):
    def __init__(self):
        super().__init__()
        self.told = []

    prepare = Heard.prepare


def test_datasets_are_told_what_the_asked_updates_draw(tmp_path):
    data = Heard(1000)
    photos = HeardPhotos()
    parts = world() | {"dataset": data}
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    batching = Batching(shape=SHAPE, batch=4, photo_share=0.5)
    for updates in (2, 1):
        first = run.updates
        train(run, Training(batching=batching, photos=photos, **parts), updates)
        draws = [d for update in range(first, run.updates) for d in draws_of(update, batching, data, photos)]
        for told, kind in ((data.told, data), (photos.told, photos)):
            assert sorted(told[-1]) == sorted({draw.index for draw in draws if draw.data is kind})
    assert len(data.told) == 2 and sum(map(len, data.told)) == 6


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_long_run_is_told_of_it_in_parts(tmp_path, monkeypatch, reuse):
    """And the same is trained as when it is told of all at once."""
    batching = Batching(shape=SHAPE, batch=3, reuse=reuse)
    runs = []
    for most in (512, 7, 1):
        monkeypatch.setattr("srpo_core.run.loop.MOST_AHEAD", most)
        parts = world() | {"dataset": Heard(100)}
        runs.append(Run(tmp_path / str(most), parts["flow"].parameters, SETTINGS))
        train(runs[-1], Training(batching=batching, **parts), 7)
        told = parts["dataset"].told
        assert len(told) == {512: 1, 7: 4 if reuse == 1 else 2, 1: 7}[most]
        assert max(map(len, told)) <= max(most, 3)
    assert all(same(state(run), state(runs[0])) for run in runs[1:])


def test_a_cancel_while_a_later_part_is_encoded_keeps_the_updates_before(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_core.run.loop.MOST_AHEAD", 2)

    class Cancelled(Heard):
        def prepare(self, indices):
            if len(self.told) == 2:
                raise InterruptedError
            super().prepare(indices)

    parts = world() | {"dataset": Cancelled()}
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    with pytest.raises(InterruptedError):
        train(run, Training(batching=Batching(shape=SHAPE, batch=2), **parts), 5)
    assert Run(tmp_path / "run", world()["flow"].parameters, SETTINGS).updates == 2


def test_also_what_is_shown_is_told_at_once():
    data = Heard(50)
    assert prepare_data(range(3, 7), Batching(shape=SHAPE, batch=2), data, also=[7, 8]) == 7
    assert data.told[0][:2] == [7, 8] and len(data.told) == 1 and len(data.told[0]) >= 8
