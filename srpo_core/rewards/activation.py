"""The activation of a CLIP's blocks, which no tensor tells: as asked, as a file beside them says, or the usual."""

import json
import logging
from pathlib import Path

from ..files import check_file
from .families import CLIP, SIGLIP
from .towers import shape
from .weights import Weights

log = logging.getLogger(__name__)

MOST_CONFIGURATION = 2**20  # bytes
ACTIVATIONS = ("auto", "gelu", "quick_gelu")
OPENAI_WIDTH = 1024  # of the widest image tower that OpenAI trained; wider ones, all by others, use gelu


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
    if not isinstance(model, dict):
        return None
    image = model.get("vision_cfg")
    if isinstance(image, dict) and image.get("width") == width:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    return None


def configuration(path: Path, name: str) -> dict:
    """The content of the file of this name beside the weights, or of the one called after them; {} when there is none.

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
