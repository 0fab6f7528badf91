"""Rewards from the files that people have: which model a file holds is told by the names and shapes in it."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import towers
from .dot_product import DotProductReward
from .heads import AestheticReward, Scorer, linear_head
from .mps import CONDITIONS, MPSReward, cross_width, mps_image, mps_text
from .pixels import Pixels
from .protocol import Reward
from .stored import check_file
from .text_features import TextFeatures
from .tokens import CLIP_VOCABULARY, SIGLIP2_VOCABULARY, clip_tokenizer, siglip_tokenizer, siglip_tokenizer_file
from .towers import Tower, not_whole, shape
from .weights import Weights, fingerprint

log = logging.getLogger(__name__)

OPEN_CLIP = "CLIP (open_clip)"
CLIP = "CLIP (transformers)"
SIGLIP = "SigLIP"
MPS = "MPS"
AESTHETIC_V25 = "aesthetic predictor v2.5"
LAION_AESTHETIC = "LAION aesthetic predictor"
SIGNS = {  # how a name ends that only this family has; the first that fits
    MPS: "cross_model.layers.0.0.fn.to_q.weight",
    AESTHETIC_V25: "scoring_head.0.weight",
    OPEN_CLIP: "visual.transformer.resblocks.0.ln_1.weight",
    SIGLIP: "vision_model.head.probe",
    CLIP: "vision_model.embeddings.class_embedding",
}
LAION_LAYERS = ("0", "2", "4", "6", "7")  # the linear ones of its head, the last to one number
LORA = re.compile(r"lora[._](A|B|down|up|embedding|magnitude)")
MOST_CONFIGURATION = 2**20  # bytes
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
    return locate(shapes)[0]


def locate(shapes: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """The family, and what trainers put before all names of the model in this file, such as "state_dict.model.".

    Raises ValueError when it is none, and when several models of the family are in it and none is the plain one.
    """
    for family, sign in SIGNS.items():
        if prefixes := before(sign, shapes):
            return family, chosen(prefixes)
    if heads := [prefix for prefix in before("layers.0.weight", shapes) if is_laion(shapes, prefix)]:
        return LAION_AESTHETIC, chosen(heads)
    if any(LORA.search(name) for name in shapes):
        raise ValueError(
            "This file is a LoRA alone, which changes a model and is none. Merge it into its model, as "
            "merge_and_unload() of peft does, and save that."
        )
    raise ValueError(
        f"This file is no reward model known here: it has {', '.join(list(shapes)[:4]) or 'no tensors'}. Known are "
        "CLIP and HPSv2 (open_clip's layout), CLIP and PickScore (transformers' layout), SigLIP and SigLIP2 "
        "(transformers' layout), MPS, the aesthetic predictor v2.5 and LAION's aesthetic predictor."
    )


def before(sign: str, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What stands before the names that end with this sign: "", or parts that each end with a dot."""
    return [name.removesuffix(sign) for name in shapes if name == sign or name.endswith(f".{sign}")]


def is_laion(shapes: dict[str, tuple[int, ...]], prefix: str) -> bool:
    names = [f"{prefix}layers.{index}.weight" for index in LAION_LAYERS]
    return all(name in shapes for name in names) and shapes[names[-1]][:1] == (1,)


def chosen(prefixes: list[str]) -> str:
    """The model itself, where a file also has its moving average. Raises ValueError where that can't be told."""
    left = [prefix for prefix in prefixes if "ema" not in re.split(r"[._]", prefix)] or prefixes
    if "" in left or len(left) == 1:
        found = "" if "" in left else left[0]
        if prefixes[1:]:
            log.info("Of the models in the file (%s), the one under %r is used.", ", ".join(prefixes), found)
        return found
    shown = " and ".join(f'"{prefix}"' for prefix in left)
    raise ValueError(f"This file has {len(left)} models, under {shown}. Save the one that is meant alone.")


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
    if condition not in CONDITIONS:
        raise ValueError(f"There is no condition {condition!r}: choose one of {', '.join(CONDITIONS)}.")
    family, weights = open_model(path)
    if family in BACKBONES:
        return aesthetic(weights, family, backbone, activation, dtype)
    if family == MPS:
        return mps(weights, activation, dtype, condition)
    return two_towers(weights, family, hps, activation, dtype, features_folder)


def open_model(path: Path) -> tuple[str, Weights]:
    """The family of the model in a file, and its tensors by the model's own names.

    Raises ValueError, a sentence, for a file of no known model, and for a model with a LoRA that is not merged.
    """
    weights = Weights(path)
    try:
        family, prefix = locate(weights.shapes)
    except ValueError as error:
        raise ValueError(f"{weights.path.name}: {error}") from None
    model = weights.within(prefix)
    if loras := [name for name in model.stored if LORA.search(name)]:
        raise ValueError(
            f"{weights.path.name} has a LoRA beside its weights ({loras[0]}), which would not count. Merge it, as "
            "merge_and_unload() of peft does, and save the model."
        )
    return family, model


def two_towers(
    weights: Weights, family: str, hps: bool | None, activation: str, dtype: torch.dtype, features_folder: Path | None
) -> DotProductReward:
    layout = LAYOUTS[family]
    path = weights.path
    activation = choose_activation(weights, family, activation)
    pixels = image_pixels(weights, family)  # first, as it knows what kind of SigLIP there is
    tokenize = tokenizer(weights, family)
    layout.text(weights, activation).check()  # now, not when the first text comes
    check_widths(weights, feature_width(weights, family), text_width(weights, family))
    scale = 1.0 if is_hps(path, family, hps) else logit_scale(weights) / 20
    reward = DotProductReward(
        layout.image(weights, activation).load(dtype),
        lambda: layout.text(open_model(path)[1], activation).load(dtype),
        tokenize,
        pixels,
        scale,
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
    size = LAYOUTS[family].image_size(weights)
    if family != SIGLIP:
        return Pixels(size)
    return Pixels(size, "squash", "bilinear" if is_siglip2(weights) else "bicubic", HALF, HALF)


def is_siglip2(weights: Weights) -> bool:
    return weights.shapes.get("text_model.embeddings.token_embedding.weight", ())[:1] == (SIGLIP2_VOCABULARY,)


def tokenizer(weights: Weights, family: str) -> Callable:
    if not any("token_embedding" in name for name in weights.stored):
        raise ValueError(
            f"{weights.path.name} has an image tower alone{weights.where}, and this reward reads texts: use the "
            "file of the whole model. Image towers serve aesthetic predictors."
        )
    vocabulary, context = LAYOUTS[family].text_size(weights)
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


def choose_activation(weights: Weights, family: str, asked: str) -> str:
    if asked != "auto":
        return asked
    if family == SIGLIP:
        return "gelu_pytorch_tanh"
    path = weights.path
    if family == CLIP:
        width = shape(weights, "vision_model.embeddings.class_embedding", 1)[0]
        told = transformers_activation(path, width)
        usual = "quick_gelu" if width <= OPENAI_WIDTH else "gelu"
    else:
        quick = any(word in path.name.lower() for word in ("openai", "quickgelu"))
        width = shape(weights, "visual.class_embedding", 1)[0]
        told = open_clip_activation(path, width)
        usual = "quick_gelu" if quick else "gelu"
    if told is None:
        log.info("There is no configuration beside %s: its activation is taken for %s.", path.name, usual)
    return told or usual


def transformers_activation(path: Path, width: int) -> str | None:
    """What a config.json beside the file says, if it is of a CLIP with an image tower this wide.

    Raises ValueError for an activation that is none of ACTIVATIONS.
    """
    config = configuration(path, "config.json")
    image = config.get("vision_config", config)
    image = image if isinstance(image, dict) else {}
    if config.get("model_type") not in ("clip", "clip_vision_model") or image.get("hidden_size", 768) != width:
        return None
    told = image.get("hidden_act", "quick_gelu")
    if told not in ACTIVATIONS[1:]:
        raise ValueError(
            f"The config.json beside {path.name} says hidden_act {told!r}, and {' and '.join(ACTIVATIONS[1:])} are "
            "known: if it is of another model, remove it; else choose the activation yourself."
        )
    return told


def open_clip_activation(path: Path, width: int) -> str | None:
    """What an open_clip_config.json beside the file says, if it is of a model with an image tower this wide."""
    model = configuration(path, "open_clip_config.json").get("model_cfg")
    image = model.get("vision_cfg") if isinstance(model, dict) else None
    if isinstance(image, dict) and image.get("width") == width:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    return None


def configuration(path: Path, name: str) -> dict:
    """Of the file of this name beside the weights, or of the one called after them; {} when there is none.

    Raises ValueError when it is no JSON of names and values.
    """
    file = next(filter(Path.exists, (path.with_name(f"{path.stem}.{name}"), path.with_name(name))), None)
    if file is None:
        return {}
    check_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= MOST_CONFIGURATION else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no configuration of a model: download it again or remove it.")
    return content


def mps(weights: Weights, activation: str, dtype: torch.dtype, condition: str) -> MPSReward:
    path = weights.path
    activation = "gelu" if activation == "auto" else activation  # CLIP-H's
    clip = weights.within("model.")
    vocabulary, context = towers.text_size(clip)
    check_vocabulary(weights, vocabulary)
    mps_text(weights, activation).check()
    check_widths(weights, feature_width(clip, CLIP), text_width(clip, CLIP), cross_width(weights))
    return MPSReward(
        mps_image(weights, activation, dtype),
        lambda: mps_text(open_model(path)[1], activation).load(dtype),
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
    found, seen = open_model(backbone)
    if found not in fitting or is_siglip2(seen):
        found = "SigLIP2" if is_siglip2(seen) else found
        raise ValueError(f"The backbone {seen.path.name} is {found}, and {weights.path.name} needs {hint}.")
    tower = LAYOUTS[found].image(seen, choose_activation(seen, found, activation))
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
        return shape(weights, f"{towers.open_clip_text_prefix(weights)}text_projection", 2)[1]
    return shape(weights, "text_projection.weight" if family == CLIP else "text_model.head.weight", 2)[0]
