"""The reward that a file of weights holds, put together."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import open_clip_towers, transformers_towers
from .activation import ACTIVATIONS, choose_activation
from .dot_product import DotProductReward
from .families import AESTHETIC_V25, CLIP, LAION_AESTHETIC, MPS, OPEN_CLIP, SIGLIP, open_model
from .heads import AestheticReward, Scorer, linear_head
from .mps import CONDITIONS, MPSReward
from .mps_towers import cross_width, mps_image, mps_text
from .pixels import Pixels
from .protocol import Reward
from .text_features import TextFeatures
from .tokens import (
    CLIP_VOCABULARY,
    SIGLIP2_VOCABULARY,
    Tokenizer,
    clip_tokenizer,
    siglip_tokenizer,
    siglip_tokenizer_file,
)
from .towers import Tower, not_whole, shape
from .weights import Weights, fingerprint

MOST_LOGIT_SCALE = 10.0  # CLIP's training holds it below 4.7
FEATURE = {  # a tensor, how many dimensions it has, and the one that is as wide as an image feature
    OPEN_CLIP: ("visual.proj", 2, 1),
    CLIP: ("visual_projection.weight", 2, 0),
    SIGLIP: ("vision_model.head.probe", 3, 2),
}
BACKBONES = {  # of the aesthetic predictors: families, and what to tell who has none
    AESTHETIC_V25: (
        (SIGLIP,),
        "SigLIP so400m-patch14-384: sigclip_vision_patch14_384.safetensors of huggingface.co/Comfy-Org/"
        "sigclip_vision_384 (about 0.86 GB), which goes into models/clip_vision",
    ),
    LAION_AESTHETIC: (
        (CLIP, OPEN_CLIP),
        "OpenAI's CLIP L/14: model.safetensors of huggingface.co/openai/clip-vit-large-patch14 (about 1.7 GB), "
        "which goes into models/clip_vision",
    ),
}
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class TowerPair:
    """How the two towers of a family are read from a file. text_size: how many tokens there are and a text may have."""

    image: Callable[[Weights, str], Tower]
    text: Callable[[Weights, str], Tower]
    image_size: Callable[[Weights], int]
    text_size: Callable[[Weights], tuple[int, int]]


TOWER_PAIRS = {
    OPEN_CLIP: TowerPair(
        image=open_clip_towers.open_clip_image,
        text=open_clip_towers.open_clip_text,
        image_size=open_clip_towers.open_clip_image_size,
        text_size=open_clip_towers.open_clip_text_size,
    ),
    CLIP: TowerPair(
        image=transformers_towers.clip_image,
        text=transformers_towers.clip_text,
        image_size=transformers_towers.clip_image_size,
        text_size=transformers_towers.text_size,
    ),
    SIGLIP: TowerPair(
        image=transformers_towers.siglip_image,
        text=transformers_towers.siglip_text,
        image_size=transformers_towers.siglip_image_size,
        text_size=transformers_towers.text_size,
    ),
}


@torch.inference_mode(False)  # or autograd could not save the weights later
def load_reward(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    hps: bool | None = None,
    activation: str = "auto",
    backbone: Path | None = None,
    condition: str = "overall",
    features_folder: Path | None = None,
) -> Reward:
    """The reward that a file holds, its image tower in memory; the text tower is read when texts are new.

    dtype: the towers', float32 or bfloat16. hps: whether a CLIP is an HPS, scored by its bare cosine; None goes by
    the file's name, as nothing in the file tells. activation: "gelu" or "quick_gelu"; "auto" takes what a config.json
    (transformers) or open_clip_config.json of this model beside the file says, else what models of its layout and
    size have. backbone: the file of the model that an aesthetic predictor sees through. condition: what MPS judges, of
    mps.CONDITIONS. features_folder: where texts are remembered from start to start.
    Raises ValueError, a sentence, for a file that can't be used; see also Weights.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"There is no activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}.")
    if condition not in CONDITIONS:
        raise ValueError(f"There is no condition {condition!r}: choose one of {', '.join(CONDITIONS)}.")
    family, weights = open_model(path)
    if family in BACKBONES:
        return aesthetic(weights, family, backbone=backbone, activation=activation, dtype=dtype)
    if family == MPS:
        return mps(weights, activation, dtype, condition)
    return two_towers(weights, family, hps=hps, activation=activation, dtype=dtype, features_folder=features_folder)


def two_towers(
    weights: Weights,
    family: str,
    *,
    hps: bool | None,
    activation: str,
    dtype: torch.dtype,
    features_folder: Path | None,
) -> DotProductReward:
    pair = TOWER_PAIRS[family]
    path = weights.path
    activation = choose_activation(weights, family, activation)
    pixels = image_pixels(weights, family)  # first, as it knows what kind of SigLIP there is
    tokenize = tokenizer(weights, family)
    pair.text(weights, activation).check()  # now, not when the first text comes
    check_widths(weights, feature_width(weights, family), text_width(weights, family))
    scale = 1.0 if is_hps(path, family, hps) else logit_scale(weights) / 20
    reward = DotProductReward(
        image_tower=pair.image(weights, activation).load(dtype),
        text_tower=lambda: pair.text(open_model(path)[1], activation).load(dtype),
        tokenize=tokenize,
        pixels=pixels,
        scale=scale,
    )
    if features_folder:
        beside = [siglip_tokenizer_file(path, is_siglip2(weights))] if family == SIGLIP else []
        reward.features = TextFeatures(features_folder / features_name([path, *beside], activation, dtype))
    return reward


def check_widths(weights: Weights, *widths: int):
    """Raises ValueError unless features of these widths can be compared."""
    if len(set(widths)) > 1:
        raise ValueError(
            f"{weights.path.name} is not of a known model: the features that it compares are "
            f"{' and '.join(map(str, widths))} wide."
        )


def is_hps(path: Path, family: str, hps: bool | None) -> bool:
    return family != SIGLIP and ("hps" in path.name.lower() if hps is None else hps)


def logit_scale(weights: Weights) -> float:
    """Raises ValueError for one that no training leads to."""
    if "logit_scale" not in weights.stored:
        raise ValueError(not_whole(weights, ["logit_scale"]))
    value = weights.number("logit_scale")
    if abs(value) > MOST_LOGIT_SCALE:
        raise ValueError(
            f"{weights.path.name} is spoilt: its logit_scale is {value:g}, and those of CLIP are near 4.6."
        )
    return math.exp(value)


def features_name(files: list[Path], activation: str, dtype: torch.dtype) -> str:
    """Another name for all that would give a text other features."""
    told = " ".join([*map(fingerprint, files), activation, str(dtype)])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest() + ".safetensors"


def image_pixels(weights: Weights, family: str) -> Pixels:
    size = TOWER_PAIRS[family].image_size(weights)
    if family != SIGLIP:
        return Pixels(size)
    return Pixels(size, "squash", "bilinear" if is_siglip2(weights) else "bicubic", HALF, std=HALF)


def is_siglip2(weights: Weights) -> bool:
    return weights.shapes.get("text_model.embeddings.token_embedding.weight", ())[:1] == (SIGLIP2_VOCABULARY,)


def tokenizer(weights: Weights, family: str) -> Tokenizer:
    if not any("token_embedding" in name for name in weights.stored):
        raise ValueError(
            f"{weights.path.name} has an image tower alone{weights.where}, and this reward reads texts: use the "
            "file of the whole model. Image towers serve aesthetic predictors."
        )
    vocabulary, context = TOWER_PAIRS[family].text_size(weights)
    if family == SIGLIP:
        return siglip_tokenizer(weights.path, vocabulary, context)
    check_vocabulary(weights, vocabulary)
    return clip_tokenizer(context, pad=0 if family == OPEN_CLIP else None)


def check_vocabulary(weights: Weights, vocabulary: int):
    if vocabulary != CLIP_VOCABULARY:
        raise ValueError(
            f"{weights.path.name} is a CLIP with {vocabulary} tokens, and only those with CLIP's own "
            f"{CLIP_VOCABULARY} can be used."
        )


def mps(weights: Weights, activation: str, dtype: torch.dtype, condition: str) -> MPSReward:
    path = weights.path
    activation = "gelu" if activation == "auto" else activation  # CLIP-H's
    clip = weights.within("model.")
    vocabulary, context = transformers_towers.text_size(clip)
    check_vocabulary(weights, vocabulary)
    mps_text(weights, activation).check()
    check_widths(weights, feature_width(clip, CLIP), text_width(clip, CLIP), cross_width(weights))
    return MPSReward(
        image_tower=mps_image(weights, activation, dtype),
        text_tower=lambda: mps_text(open_model(path)[1], activation).load(dtype),
        tokenize=clip_tokenizer(context),
        pixels=Pixels(transformers_towers.clip_image_size(clip)),
        scale=logit_scale(clip) / 20,
        condition=condition,
    )


def aesthetic(
    weights: Weights, family: str, *, backbone: Path | None, activation: str, dtype: torch.dtype
) -> AestheticReward:
    fitting, hint = BACKBONES[family]
    if backbone is None:
        raise ValueError(
            f"{weights.path.name} is a head on the image feature of another model, its backbone, which is missing. "
            f"Choose the file of {hint}."
        )
    found, seen = open_model(backbone)
    if found not in fitting or is_siglip2(seen):
        found = "SigLIP2" if is_siglip2(seen) else found
        raise ValueError(f"The backbone {seen.path.name} is {found}, and {weights.path.name} needs {hint}.")
    tower = TOWER_PAIRS[found].image(seen, choose_activation(seen, found, activation))
    prefix = "scoring_head." if family == AESTHETIC_V25 else "layers."
    head = linear_head(weights, prefix)
    width = feature_width(seen, found)
    needed = shape(weights, f"{prefix}0.weight", 2)[1]
    if width != needed:
        raise ValueError(
            f"{weights.path.name} is for image features {needed} wide, and those of {seen.path.name} are {width} wide. "
            f"Choose the file of {hint}."
        )
    return AestheticReward(Scorer(tower.load(dtype), head), image_pixels(seen, found))


def feature_width(weights: Weights, family: str) -> int:
    name, dimensions, which = FEATURE[family]
    return shape(weights, name, dimensions)[which]


def text_width(weights: Weights, family: str) -> int:
    if family == OPEN_CLIP:
        return shape(weights, f"{open_clip_towers.open_clip_text_prefix(weights)}text_projection", 2)[1]
    return shape(weights, "text_projection.weight" if family == CLIP else "text_model.head.weight", 2)[0]
