"""Differentiable rewards: how well an image fits a text."""

from .dot_product import DotProductReward, clip_reward
from .pixels import CLIP_MEAN, CLIP_STD, Pixels
from .protocol import Reward, score_words
from .text_features import TextFeatures

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "DotProductReward",
    "Pixels",
    "Reward",
    "TextFeatures",
    "clip_reward",
    "score_words",
]
