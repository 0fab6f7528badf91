"""Estimates by stage, and what is said where they are too much."""

import pytest
import torch

from srpo_core.run.memory import (
    BlockBytes,
    LiveBytes,
    MemoryUse,
    StageBytes,
    advice,
    fastest,
    over_blocks,
    sampled_together,
)

GB = 1_000_000_000


def memory_use(at_once=1, kept_blocks=0, offload=False):
    return MemoryUse(at_once=at_once, kept_blocks=kept_blocks, offload=offload)


def test_live_bytes_of_what_is_alive():
    before = torch.ones(1000)
    with LiveBytes() as count:
        a = torch.ones(1000)  # 4000 bytes
        b = a.view(10, 100)  # none
        a += before
        before.t()
        assert count.held == 4000
        c = torch.cat([a, before])
        assert count.held == 12000
        del a
        assert count.held == 12000  # b is of the same storage
        del b, c
        assert count.held == 0
    assert count.peak == 12000


def test_live_bytes_of_a_backward():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as count:
        y = (x.exp() + 1).sum()
        assert count.held == 4000 + 4  # exp's output is kept, the sum's input is not
        gradient = torch.autograd.grad(y, x)[0]
        del y
        assert count.held == gradient.nbytes
    assert count.peak >= 8000


def test_over_blocks():
    """The last block is at work on top of what all kept, the first when the others' is gone."""
    assert over_blocks(5, [BlockBytes(10, 100), BlockBytes(20, 1)]) == (115, 35)
    assert over_blocks(5, [BlockBytes(10, 100), BlockBytes(20, 90)]) == (125, 35)
    assert over_blocks(5, []) == (5, 5)


NEEDS = {"branch": StageBytes(24 * GB, 3 * GB), "decode": StageBytes(0, 6 * GB)}


def test_nothing_is_said_where_all_fits():
    assert advice(NEEDS, 27 * GB) == ""


def test_weights_that_stay_in_ram():
    text = advice(NEEDS, 20 * GB)
    assert "7.0 GB of the 24.0 GB of weights of the stage branch" in text and "slower" in text


def test_the_settings_that_are_enough():
    def tried():
        yield "at_once 1", NEEDS | {"decode": StageBytes(0, 5 * GB)}
        yield "0 kept blocks", NEEDS | {"decode": StageBytes(0, 5 * GB)}  # helps nothing here
        yield "512x512", NEEDS | {"decode": StageBytes(0, 3 * GB)}
        raise AssertionError("went on although it fits")

    text = advice(NEEDS, 4 * GB, tried())
    assert text.startswith("This can't fit: the stage decode needs 2.0 GB more than the 4.0 GB there are.")
    assert text.endswith("It would with at_once 1 and 512x512.")


@pytest.mark.parametrize(
    "tried, end", [((), "enough."), ([("at_once 1", {"decode": StageBytes(0, 5 * GB)})], "at_once 1.")]
)
def test_nothing_is_enough(tried, end):
    text = advice(NEEDS, 4 * GB, tried)
    assert "No setting here is enough" in text and text.endswith(end)


@pytest.mark.parametrize(
    "budget, use",
    [
        (100, memory_use(8, 10)),
        (89, memory_use(8, 7)),  # 50 + 8 + 4 x 7 = 86
        (60, memory_use(8, 0)),
        (57, memory_use(4, 0)),
        (51, memory_use(1, 0)),
        (50, memory_use(1, 0, True)),
    ],
)
def test_the_fastest_use_of_memory(budget, use):
    """Weights of 50, 1 for each picture at once, 4 for each block kept."""

    def needs_with(use):
        return {"branch": StageBytes(50, use.at_once + 4 * use.kept_blocks), "decode": StageBytes(1, 2)}

    assert fastest(needs_with, at_once=8, batch=8, blocks=10, budget=budget) == use


@pytest.mark.parametrize(
    "budget, use",
    [
        (150, memory_use(12, 10)),
        (120, memory_use(6, 10)),
        (62, memory_use(1, 10)),
        (61, memory_use(1, 9)),  # not all blocks
        (51, memory_use(1, 0)),
        (50, memory_use(1, 0, True)),
    ],
)
def test_how_many_share_a_forward_where_that_is_to_be_chosen(budget, use):
    """Weights of 50, 1 for each picture at once, with 10 blocks of 0.7 kept for each, and 0.4 for any."""

    def needs_with(use):
        return {"branch": StageBytes(50, use.at_once + (0.7 * use.at_once + 0.4) * use.kept_blocks)}

    assert fastest(needs_with, at_once=0, batch=12, blocks=10, budget=budget) == use


def test_blocks_that_cost_more_than_the_mean():
    """The last ones, 10 each, the others 1."""

    def needs_with(use):
        return {"branch": StageBytes(0, 10 * min(use.kept_blocks, 2) + max(use.kept_blocks - 2, 0))}

    assert fastest(needs_with, at_once=1, batch=1, blocks=10, budget=14) == memory_use(1, 1)


@pytest.mark.parametrize(
    "budget, together",
    [
        (40, 12),  # 24 of weights, 1 of the adapter, 15 for pictures of 1 each
        (32, 6),
        (28, 3),
        (26, 12),  # not even two beside the weights: half of it is theirs, 1 the adapter's
        (20, 6),
        (4, 2),
    ],
)
def test_how_many_are_sampled_together(budget, together):
    rollout = StageBytes(24 * GB, 3 * GB)  # of two pictures
    assert sampled_together(rollout, 1 * GB, at_once=2, batch=12, budget=budget * GB) == together
