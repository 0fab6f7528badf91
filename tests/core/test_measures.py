"""The numbers of pictures: a grid against closed forms and real photos, diversity against distances by hand."""

import math

import pytest
import skimage.data
import torch
import torch.nn.functional as F

from srpo_core.report.measures import (
    MEASURES,
    about_diversity,
    changed_numbers,
    diversity,
    features_of,
    grid_pattern,
    measure_pictures,
    shown_numbers,
)

PHOTOS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "rocket")


def photo(name):
    """(1, 3, H, W) in [0, 1]: one that scikit-image ships."""
    pixels = torch.from_numpy(getattr(skimage.data, name)()).float() / 255
    return pixels.expand(3, *pixels.shape)[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)[None]


def planted(images, levels, period=16, seed=0):
    """The pictures with a tile of smooth noise again and again, of a standard deviation of so many of 255 levels."""
    tile = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    tile = F.interpolate(tile, period, mode="bicubic")
    tile = (tile - tile.mean()) / tile.std() * levels / 255
    height, width = images.shape[-2:]
    return images + tile.repeat(1, 1, height // period + 1, width // period + 1)[..., :height, :width]


# The grid


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_has_none_and_a_planted_one_stands_out_of_it(name):
    there = photo(name)
    for period in (16, 8):
        assert abs(grid_pattern(there, period)) < 0.15
        found = [grid_pattern(planted(there, levels, period), period) for levels in (0, 4, 8, 16)]
        assert found == sorted(found) and found[2] > 0.4


def test_photos_together_have_none():
    assert abs(sum(map(grid_pattern, map(photo, PHOTOS))) / len(PHOTOS)) < 0.03  # measured: -0.002


def test_a_cosine_in_noise_is_the_closed_form():
    """Of amplitude a in white noise of deviation s, along one of two directions, at one of four multiples.

    Hann's window w of length L gives the line a^2 (sum w)^2 / 4 and noise s^2 sum w^2: their ratio is a^2 L / (6 s^2).
    """
    length = 512
    noise = 0.05 * torch.randn(16, 1, length, length, generator=torch.Generator().manual_seed(0))
    wave = 0.02 * torch.cos(2 * math.pi * torch.arange(length) / 16)
    expected = 0.02**2 * length / (6 * 0.05**2) / 8
    assert grid_pattern((0.5 + noise + wave).expand(-1, 3, -1, -1)) == pytest.approx(expected, rel=0.05)


def test_neither_brightness_nor_contrast_nor_where_it_begins_matters():
    there = planted(photo("astronaut"), 8)
    found = grid_pattern(there)
    assert grid_pattern(there + 0.2) == pytest.approx(found, rel=1e-3)
    assert grid_pattern(there * 0.5) == pytest.approx(found, rel=0.02)
    assert grid_pattern(there[..., 7:, 3:]) == pytest.approx(found, rel=0.15)
    assert grid_pattern(there.mT) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("size", [(500, 397), (256, 511), (65, 64)])
def test_any_size_from_four_periods_on(size):
    there = photo("coffee")[..., : size[0], : size[1]]
    there = F.interpolate(there, size)
    assert grid_pattern(planted(there, 16)) > grid_pattern(there) + 0.3


def test_too_small_and_flat_pictures():
    assert grid_pattern(torch.rand(1, 3, 63, 500)) is None and grid_pattern(torch.rand(1, 3, 32, 32), 8) is not None
    assert grid_pattern(torch.full((2, 3, 64, 64), 0.3)) == pytest.approx(0, abs=1e-4)
    faint = torch.full((1, 3, 128, 128), 0.3)
    faint[..., ::16] += 1e-4  # no picture of 8 bits shows it
    assert grid_pattern(faint) < 0.05


def test_each_period_is_told_from_the_other():
    there = photo("camera")
    of_8 = planted(there, 12, period=8)
    assert grid_pattern(of_8, 16) == pytest.approx(grid_pattern(there, 16), abs=0.05)
    assert grid_pattern(of_8, 8) > 1


# Diversity


def test_diversity_is_the_mean_over_pairs_then_over_prompts():
    features = torch.eye(5)
    features[4] = features[3]
    assert diversity(features, ["a", "a", "a", "b", "b"]) == pytest.approx((math.sqrt(2) + 0) / 2)
    assert diversity(features[:2], ["a", "b"]) is None
    assert diversity(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), [0, 0, 0, 1]) == pytest.approx((1 + 3 + 2) / 3)


class Tower:
    """A reward that embeds: the mean colour."""

    name = "tower"

    def score(self, images, texts):
        return images.mean((1, 2, 3))

    def embed(self, images):
        return images.mean((2, 3))


def test_pictures_are_compared_by_the_reward_s_features_where_it_has_some():
    images = torch.rand(12, 3, 40, 40)
    found = features_of(images, Tower())
    torch.testing.assert_close(found, F.normalize(images.mean((2, 3)), dim=1))
    assert "features of tower" in about_diversity(Tower())


def test_without_features_it_is_the_root_mean_square_of_small_colours():
    images = torch.stack([torch.full((3, 32, 48), value) for value in (0.2, 0.5)])
    assert diversity(features_of(images, None), [0, 0]) == pytest.approx(0.3, abs=1e-6)
    assert "colours" in about_diversity(None)


def test_the_numbers_of_pictures_are_those_that_they_have():
    images = torch.rand(4, 64, 64, 3)
    assert list(measure_pictures(images, [0, 0, 1, 1])) == ["saturation", "diversity", "grid 16 px", "grid 8 px"]
    assert set(measure_pictures(images, [0, 0, 1, 1])) < set(MEASURES)  # so that each has its name in any language
    assert list(measure_pictures(images[:, :40], [0, 1, 2, 3])) == ["saturation", "grid 8 px"]
    assert list(measure_pictures(images[:, :20], [0, 1, 2, 3])) == ["saturation"]
    before = {"saturation": 0.5, "grid 8 px": 0.01}
    assert shown_numbers(before) == "saturation 0.50, grid 8 px 0.01"
    assert changed_numbers(before, {"saturation": 0.4, "grid 8 px": 0.2}) == (
        "saturation 0.50 -> 0.40, grid 8 px 0.01 -> 0.20"
    )
