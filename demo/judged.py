"""The pictures that the toy is measured on, and its numbers."""

import itertools

import import_core  # noqa: F401 (by which srpo_core is found)
import torch

from srpo_core.toy.judge import measure
from srpo_core.toy.models import load_clip, load_tokenizer
from srpo_core.toy.pictures import BACKGROUNDS, COLOURS, SHAPES, all_scenes, caption
from srpo_core.toy.train_clip import words_gap

PICTURES = 8  # of each scene that is measured
REPORTED = ("realism", "words_gap", "saturation", "alignment", "photo", "diversity")


def measured_scenes() -> list:
    """A quarter of the 96 scenes, every shape, colour and background as often as the others."""
    places = itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(len(BACKGROUNDS)))
    return [scene for scene, place in zip(all_scenes(), places) if sum(place) % 4 == 0]


def measured(images: torch.Tensor, scenes: list) -> dict[str, float]:
    """The judge's numbers, and the words-gap, of pictures (N, 3, H, W) in [0, 1] of these scenes."""
    gap = words_gap(load_clip(), load_tokenizer(), images, [caption(scene) for scene in scenes])
    return measure(images, scenes) | {"words_gap": float(gap.mean())}
