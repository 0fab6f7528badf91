"""How far a path bends, against closed forms and against the definition with all velocities kept."""

import math

import pytest
import torch
from tiny_world import numbers

from srpo_core.algorithm.path import Path

STEPS = (1.0, 0.75, 0.5, 0.25)


def walked(shares, velocities):
    path = Path()
    for share, velocity in zip(shares, velocities):
        path.visit(share, velocity)
    return path


def test_it_is_the_straightness_of_rectified_flow():
    """mean |v - (noise - x0)|^2 over |noise - x0|^2, of each sample, by Euler's steps of unequal width."""
    shares = torch.tensor([1.0, 0.9, 0.62, 0.6, 0.1, 0.0]).double()
    velocities = numbers(1, 5, 3, 2, 4, 4)
    noise = numbers(2, 3, 2, 4, 4)
    x = noise.clone()
    widths = shares[:-1] - shares[1:]
    for width, velocity in zip(widths, velocities):
        x = x - width * velocity
    off = (velocities - (noise - x)).flatten(2).square().sum(2)
    expected = (widths[:, None] * off).sum(0) / (noise - x).flatten(1).square().sum(1)
    found = walked(shares[:-1].tolist(), velocities).curvature()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(walked(shares[:-1].tolist(), velocities).curvature(), found)


def test_a_straight_path_has_none():
    velocity = numbers(3, 2, 4, 8, 8)
    assert walked(STEPS, [velocity] * 4).curvature().abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_a_quarter_of_a_circle(scale):
    """v turns evenly by 90 degrees: (pi / 2)^2 / 2 - 1, whatever its length is."""
    count = 4000
    angles = [math.pi / 2 * (i + 0.5) / count for i in range(count)]
    velocities = [scale * torch.tensor([[math.cos(a), math.sin(a)]]).double() for a in angles]
    found = walked([1 - i / count for i in range(count)], velocities).curvature().item()
    assert found == pytest.approx((math.pi / 2) ** 2 / 2 - 1, rel=1e-3)


def test_a_second_look_at_a_level_counts_and_the_first_does_not():
    """As Heun's sampler asks: where it was led to, and then where it goes."""
    first, predicted, second = numbers(4, 3, 1, 8)
    found = walked([1.0, 0.5, 0.5], [first, predicted, second]).curvature()
    torch.testing.assert_close(found, walked([1.0, 0.5], [first, second]).curvature(), rtol=1e-5, atol=1e-6)


def test_of_a_path_that_begins_below_pure_noise():
    """The mean is over the shares that it has: an SD model's begin at 0.936."""
    velocities = numbers(5, 4, 1, 8)
    whole = walked(STEPS, velocities).curvature()
    torch.testing.assert_close(walked([0.9 * s for s in STEPS], velocities).curvature(), whole, rtol=1e-5, atol=0)


def test_a_returned_number_is_one_s_own():
    """Each picture of a batch has its own, whatever it shares the batch with."""
    velocities = numbers(6, 4, 3, 2, 4, 4)
    together = walked(STEPS, velocities).curvature()
    alone = torch.cat([walked(STEPS, velocities[:, i : i + 1]).curvature() for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_one_step_tells_nothing_of_the_bend():
    path = Path()
    path.visit(1.0, numbers(1, 2, 3))
    assert path.curvature().isnan().all()


def test_what_is_asked_above_the_last_level_is_left_out():
    """As heunpp2 asks, to correct its steps."""
    velocities = [numbers(i, 2, 3, dtype=torch.float32) for i in range(4)]
    levels = (1.0, 0.75, 0.5, 0.25)
    plain = Path()
    corrected = Path()
    for share, velocity in zip(levels, velocities):
        plain.visit(share, velocity)
        corrected.visit(share, velocity)
        if share < 1:
            corrected.visit(share + 0.25, numbers(9, 2, 3, dtype=torch.float32))
    torch.testing.assert_close(corrected.curvature(), plain.curvature())
