"""Differentiable rewards: how well an image fits a text."""

from .dot_product import DotProductReward, clip_reward
from .families import detect
from .heads import AestheticReward
from .load import load_reward
from .mps import MPSReward
from .pixels import CLIP_MEAN, CLIP_STD, Pixels
from .protocol import EmbeddingReward, PreparedReward, Reward, name_of, reads_text, score_all, score_words
from .text_features import TextFeatures
from .weights import Weights, fingerprint

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "AestheticReward",
    "DotProductReward",
    "EmbeddingReward",
    "MPSReward",
    "Pixels",
    "PreparedReward",
    "Reward",
    "TextFeatures",
    "Weights",
    "clip_reward",
    "detect",
    "fingerprint",
    "load_reward",
    "name_of",
    "reads_text",
    "score_all",
    "score_words",
]
