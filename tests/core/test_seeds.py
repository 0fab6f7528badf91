"""Streams of different seeds share nothing, and every sample's noise has a name."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TWO, go, world
from tiny_world import SHAPE, TinyData

from srpo_core.algorithm.noise_levels import draw_position
from srpo_core.algorithm.objective import Objective
from srpo_core.run.draws import Batching, draw_noise, draw_seed, draws_of, noise_seed, prompt_index
from srpo_core.run.training import Training
from srpo_core.seeds import FIRST_RESERVED, NOISES, derived_seed

DRAWS = 160  # of a run of 20 updates
SEEDS = [0, 1, 2, 3, 99, 100, 101, 2**32, 2**32 + 1, 2**63, 2**63 + 1, 2**64 - 1]


def seeds_of(seed: int) -> list[int]:
    return [draw_seed(Batching(shape=SHAPE, seed=seed), number) for number in range(DRAWS)]


def test_runs_of_other_seeds_share_no_noise():
    """What torch draws of a seed depends on 32 bits of it, so noises are compared and not seeds."""
    noises = {seed: draw_noise(seeds_of(seed), (64,)) for seed in SEEDS}
    assert len(torch.cat(list(noises.values())).unique(dim=0)) == DRAWS * len(SEEDS)
    for first, second in itertools.combinations(SEEDS, 2):
        together = (noises[first] * noises[second]).mean(1)  # of the draws of one number: (DRAWS,)
        assert together.abs().mean() == pytest.approx((2 / torch.pi / 64) ** 0.5, rel=0.3)  # as of independent ones


def test_noise_levels_and_prompts_of_other_seeds_are_unrelated():
    levels = torch.tensor([[draw_position(seed) for seed in seeds_of(seed)] for seed in SEEDS], dtype=torch.float64)
    orders = torch.tensor([[prompt_index(seed, n, DRAWS) for n in range(DRAWS)] for seed in SEEDS]).double()
    for table in (levels, orders):
        related = torch.corrcoef(table) - torch.eye(len(SEEDS))
        assert related.abs().max() < 5 / DRAWS**0.5
        for shift in range(1, 4):  # nor are they the neighbour's, a little later
            assert (table[:-1, shift:] == table[1:, :-shift]).double().mean() < 0.1


def test_random_words_of_other_seeds_and_samples_differ():
    objective = Objective(order="random")
    words = {seed: [objective.words(1, draw) for draw in seeds_of(seed)] for seed in SEEDS}
    alike = [
        sum(a == b for a, b in zip(words[first], words[second])) / DRAWS
        for first, second in itertools.combinations(SEEDS, 2)
    ]
    assert max(alike) < 0.2 and sum(alike) / len(alike) == pytest.approx(1 / 20, abs=0.02)  # 4 x 5 words


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**9))
def test_a_draw_has_a_seed_that_can_be_typed_and_that_previews_never_take(seed, number):
    drawn = draw_seed(Batching(shape=SHAPE, seed=seed), number)
    assert drawn == draw_seed(Batching(shape=SHAPE, batch=3, seed=seed), number) == derived_seed("draw", seed, number)
    assert 0 <= drawn < FIRST_RESERVED < NOISES <= 2**53  # a browser rounds whole numbers beyond


def test_noise_levels_do_not_follow_from_the_order_in_which_they_are_asked():
    numbers = list(range(50))
    shuffled = sorted(numbers, key=lambda number: derived_seed(number))
    batching = Batching(shape=SHAPE, seed=4)
    assert sorted(draw_seed(batching, n) for n in shuffled) == sorted(draw_seed(batching, n) for n in numbers)


def test_the_log_names_the_noise_of_every_sample(tmp_path, caplog):
    rolled = []
    parts = world()
    rollout = parts["flow"].rollout
    parts["flow"].rollout = lambda noise, *rest: rolled.append(noise) or rollout(noise, *rest)
    from srpo_core.run.loop import train
    from srpo_core.run.run import Run

    with caplog.at_level("INFO", "srpo_core.run.loop"):
        training = Training(batching=Batching(shape=SHAPE, batch=2, seed=8), **parts)
        train(Run(tmp_path, parts["flow"].parameters), training, 2)
    lines = [re.findall(r"\d+", message.partition(":")[2]) for message in caplog.messages if "noise seeds" in message]
    named = [int(seed) for line in lines for seed in line]
    assert torch.equal(torch.cat(rolled), draw_noise(named, SHAPE))


def test_a_shared_noise_is_that_of_the_first_sample():
    batching = Batching(shape=SHAPE, batch=3, shared_noise=True)
    draws = draws_of(1, batching, TinyData())
    assert {noise_seed(batching, draw) for draw in draws} == {draw_seed(batching, 3)}


def test_runs_of_neighbouring_seeds_come_to_other_results(tmp_path):
    from dataclasses import replace

    runs = [go(tmp_path / str(seed), 3, replace(TWO, seed=seed)) for seed in (0, 1)]
    assert not {m["sigma"] for m in runs[0].history} & {m["sigma"] for m in runs[1].history}
