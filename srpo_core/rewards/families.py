"""Which model a file of weights holds: told by the names and shapes in it."""

import logging
import re
from pathlib import Path

from .weights import Weights

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
