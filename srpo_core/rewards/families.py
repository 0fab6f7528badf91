"""Rewards from the files that people have: which model a file holds is told by the names and shapes in it."""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import towers
from .dot_product import DotProductReward
from .heads import AestheticReward, Scorer, linear_head
from .mps import MPSReward, mps_image, mps_text
from .pixels import Pixels
from .protocol import Reward
from .text_features import TextFeatures
from .tokens import CLIP_VOCABULARY, SIGLIP2_VOCABULARY, clip_tokenizer, siglip_tokenizer, siglip_tokenizer_file
from .towers import Tower, shape
from .weights import Weights, fingerprint

log = logging.getLogger(__name__)

OPEN_CLIP, CLIP, SIGLIP, MPS = "CLIP (open_clip)", "CLIP (transformers)", "SigLIP", "MPS"
AESTHETIC_V25, LAION_AESTHETIC = "aesthetic predictor v2.5", "LAION aesthetic predictor"
SIGNS = {  # how a name ends that only this family has; the first that fits
    MPS: "cross_model.layers.0.0.fn.to_q.weight",
    AESTHETIC_V25: "scoring_head.0.weight",
    OPEN_CLIP: "visual.transformer.resblocks.0.ln_1.weight",
    SIGLIP: "vision_model.head.probe",
    CLIP: "vision_model.embeddings.class_embedding",
}
FEATURE = {  # a tensor, and the dimension of it that is as wide as an image feature
    OPEN_CLIP: ("visual.proj", 1),
    CLIP: ("visual_projection.weight", 0),
    SIGLIP: ("vision_model.head.probe", 2),
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
ACTIVATIONS = ("auto", "gelu", "quick_gelu")
OPENAI_WIDTH = 1024  # of the widest image tower that OpenAI trained; wider ones, all by others, use gelu
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Layout:
    """How a family with two towers is read. text_size: how many tokens there are and a text may have."""

    image: Callable[[Weights, str], Tower]
    text: Callable[[Weights, str], Tower]
    image_size: Callable[[Weights], int]
    text_size: Callable[[Weights], tuple[int, int]]


LAYOUTS = {
    OPEN_CLIP: Layout(
        towers.open_clip_image, towers.open_clip_text, towers.open_clip_image_size, towers.open_clip_text_size
    ),
    CLIP: Layout(towers.clip_image, towers.clip_text, towers.clip_image_size, towers.text_size),
    SIGLIP: Layout(towers.siglip_image, towers.siglip_text, towers.siglip_image_size, towers.text_size),
}


def detect(shapes: dict[str, tuple[int, ...]]) -> str:
    """The family, one of those named above, of a file with these tensors. Raises ValueError when it is none."""
    if {"layers.0.weight", "layers.7.weight"} <= shapes.keys():
        return LAION_AESTHETIC
    for family, sign in SIGNS.items():
        if any(name.endswith(sign) for name in shapes):
            return family
    raise ValueError(
        f"This file is no reward model known here: it has {', '.join(list(shapes)[:4]) or 'no tensors'}. Known are "
        "CLIP and HPSv2 (open_clip's layout), CLIP and PickScore (transformers' layout), SigLIP and SigLIP2 "
        "(transformers' layout), MPS, the aesthetic predictor v2.5 and LAION's aesthetic predictor."
    )


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

    dtype: of the towers, float32 or bfloat16. hps: whether a CLIP is an HPS, scored by its bare cosine; None goes by
    the file's name, as nothing in the file tells. activation: "gelu" or "quick_gelu"; "auto" takes what a config.json
    (transformers) or open_clip_config.json of this model beside the file says, else what models of its layout and
    size have. backbone: the file of the model that an aesthetic predictor sees through. condition: what MPS judges, of
    mps.CONDITIONS. features_folder: where texts are remembered from start to start.
    Raises ValueError, a sentence, for a file that can't be used; see also Weights.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"There is no activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}.")
    weights = Weights(path)
    family = recognise(weights)
    if family in BACKBONES:
        return aesthetic(weights, family, backbone, activation, dtype)
    if family == MPS:
        return mps(weights, activation, dtype, condition)
    return two_towers(weights, family, hps, activation, dtype, features_folder)


def recognise(weights: Weights) -> str:
    try:
        return detect(weights.shapes)
    except ValueError as error:
        raise ValueError(f"{weights.path.name}: {error}") from None


def two_towers(
    weights: Weights, family: str, hps: bool | None, activation: str, dtype: torch.dtype, features_folder: Path | None
) -> DotProductReward:
    layout, path = LAYOUTS[family], weights.path
    activation = choose_activation(weights, family, activation)
    pixels = image_pixels(weights, family)  # first, as it knows what kind of SigLIP there is
    tokenize = tokenizer(weights, family)
    layout.text(weights, activation).check()  # now, not when the first text comes
    scale = 1.0 if is_hps(path, family, hps) else logit_scale(weights) / 20
    reward = DotProductReward(
        layout.image(weights, activation).load(dtype),
        lambda: layout.text(Weights(path), activation).load(dtype),
        tokenize,
        pixels,
        scale,
    )
    if features_folder:
        beside = [siglip_tokenizer_file(path, is_siglip2(weights))] if family == SIGLIP else []
        reward.features = TextFeatures(features_folder / features_name([path, *beside], activation, dtype))
    return reward


def is_hps(path: Path, family: str, hps: bool | None) -> bool:
    return family != SIGLIP and ("hps" in path.name.lower() if hps is None else hps)


def logit_scale(weights: Weights) -> float:
    shape(weights, "logit_scale")
    return math.exp(weights.number("logit_scale"))


def features_name(files: list[Path], activation: str, dtype: torch.dtype) -> str:
    """Another name for all that would give a text other features."""
    told = " ".join([*map(fingerprint, files), activation, str(dtype)])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest() + ".safetensors"


def image_pixels(weights: Weights, family: str) -> Pixels:
    size = LAYOUTS[family].image_size(weights)
    if family != SIGLIP:
        return Pixels(size)
    return Pixels(size, "squash", "bilinear" if is_siglip2(weights) else "bicubic", HALF, HALF)


def is_siglip2(weights: Weights) -> bool:
    return weights.shapes.get("text_model.embeddings.token_embedding.weight", (0,))[0] == SIGLIP2_VOCABULARY


def tokenizer(weights: Weights, family: str) -> Callable:
    if not any("token_embedding" in name for name in weights.shapes):
        raise ValueError(
            f"{weights.path.name} has an image tower alone, and this reward reads texts: use the file of the whole "
            "model. Image towers serve aesthetic predictors."
        )
    vocabulary, context = LAYOUTS[family].text_size(weights)
    if family == SIGLIP:
        return siglip_tokenizer(weights.path, vocabulary, context)
    if vocabulary != CLIP_VOCABULARY:
        raise ValueError(
            f"{weights.path.name} is a CLIP with {vocabulary} tokens, and only those with CLIP's own "
            f"{CLIP_VOCABULARY} can be used."
        )
    return clip_tokenizer(context, pad=0 if family == OPEN_CLIP else None)


def choose_activation(weights: Weights, family: str, asked: str) -> str:
    if asked != "auto":
        return asked
    if family == SIGLIP:
        return "gelu_pytorch_tanh"
    path = weights.path
    if family == CLIP:
        width = shape(weights, "vision_model.embeddings.class_embedding")[0]
        told, usual = transformers_activation(path, width), "quick_gelu" if width <= OPENAI_WIDTH else "gelu"
    else:
        quick = any(word in path.name.lower() for word in ("openai", "quickgelu"))
        width = shape(weights, "visual.class_embedding")[0]
        told, usual = open_clip_activation(path, width), "quick_gelu" if quick else "gelu"
    if told is None:
        log.info("There is no configuration beside %s: its activation is taken for %s.", path.name, usual)
    return told or usual


def transformers_activation(path: Path, width: int) -> str | None:
    """What a config.json beside the file says, if it is of a CLIP with an image tower this wide."""
    config = configuration(path, "config.json")
    image = config.get("vision_config", config)
    if config.get("model_type") in ("clip", "clip_vision_model") and image.get("hidden_size", 768) == width:
        return image.get("hidden_act", "quick_gelu")
    return None


def open_clip_activation(path: Path, width: int) -> str | None:
    """What an open_clip_config.json beside the file says, if it is of a model with an image tower this wide."""
    model = configuration(path, "open_clip_config.json").get("model_cfg", {})
    if model.get("vision_cfg", {}).get("width") == width:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    return None


def configuration(path: Path, name: str) -> dict:
    """Of the file of this name beside the weights, or of the one called after them; {} when there is none.

    Raises ValueError when it is not JSON.
    """
    file = next(filter(Path.exists, (path.with_name(f"{path.stem}.{name}"), path.with_name(name))), None)
    if file is None:
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again or remove it.") from error


def mps(weights: Weights, activation: str, dtype: torch.dtype, condition: str) -> MPSReward:
    sign = next(name for name in weights.shapes if name.endswith(SIGNS[MPS]))
    prefix = sign.removesuffix(SIGNS[MPS])  # some files have one before all names
    path, weights = weights.path, weights.within(prefix)
    activation = "gelu" if activation == "auto" else activation  # CLIP-H's
    clip = weights.within("model.")
    _, context = towers.text_size(clip)
    mps_text(weights, activation).check()
    return MPSReward(
        mps_image(weights, activation, dtype),
        lambda: mps_text(Weights(path).within(prefix), activation).load(dtype),
        clip_tokenizer(context),
        Pixels(towers.clip_image_size(clip)),
        logit_scale(clip) / 20,
        condition,
    )


def aesthetic(
    weights: Weights, family: str, backbone: Path | None, activation: str, dtype: torch.dtype
) -> AestheticReward:
    fitting, hint = BACKBONES[family]
    if backbone is None:
        raise ValueError(
            f"{weights.path.name} is a head on the image feature of another model, its backbone, which is missing. "
            f"Choose the file of {hint}."
        )
    seen = Weights(backbone)
    found = recognise(seen)
    if found not in fitting or is_siglip2(seen):
        found = "SigLIP2" if is_siglip2(seen) else found
        raise ValueError(f"The backbone {seen.path.name} is {found}, and {weights.path.name} needs {hint}.")
    tower = LAYOUTS[found].image(seen, choose_activation(seen, found, activation))
    prefix = "scoring_head." if family == AESTHETIC_V25 else "layers."
    head = linear_head(weights, prefix)
    width, needed = feature_width(seen, found), shape(weights, f"{prefix}0.weight")[1]
    if width != needed:
        raise ValueError(
            f"{weights.path.name} is for image features {needed} wide, and those of {seen.path.name} are {width} wide. "
            f"Choose the file of {hint}."
        )
    return AestheticReward(Scorer(tower.load(dtype), head), image_pixels(seen, found))


def feature_width(weights: Weights, family: str) -> int:
    name, dimension = FEATURE[family]
    return shape(weights, name)[dimension]
