"""Prompts through the host's text encoders, once for each prompt and encoder."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.utils
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ...srpo_core.conditionings import Conditionings, Listed
from ...srpo_core.digest import digest

log = logging.getLogger(__name__)

FORMAT = 1  # of what is stored; another one encodes everything anew


def encode(clip, prompts: list[str], folder: Path) -> Listed:
    """The CONDITIONING of each prompt, kept on disk in `folder`/<identity of the CLIP>/<digest of its tokens>.

    Runs the text encoders for unknown prompts alone, and does not load them where all are known. Each is kept as soon
    as it is encoded, so cancel loses none. Text encoders that were loaded leave the device afterwards: training needs
    the room. Raises ValueError without a CLIP.
    """
    if clip is None:
        raise ValueError("There is no text encoder: the file that clip comes from has none. Use DualCLIPLoader.")
    place, keys = identify(clip, prompts)
    known = Conditionings(folder / place if place else None)
    missing = known.missing(keys)
    if missing:
        _encode_missing(clip, dict(zip(keys, prompts)), missing, known)
    log.info("Prompts: %d encoded, %d known before.", len(missing), len(set(keys)) - len(missing))
    return Listed(keys, known)


def _encode_missing(clip, texts: dict[str, str], missing: list[str], known: Conditionings):
    bar = comfy.utils.ProgressBar(len(missing))
    for key in missing:
        comfy.model_management.throw_exception_if_processing_interrupted()
        known.add(key, clip.encode_from_tokens_scheduled(clip.tokenize(texts[key]), show_pbar=False)[0])
        bar.update(1)
    comfy.model_management.unload_model_and_clones(clip.patcher)


def identify(clip, prompts: list[str]) -> tuple[str | None, list[str]]:
    """The CLIP's identity and a key for each prompt: None and the prompts themselves if it has parts that can't be
    identified, such as hooks and functions.

    A prompt counts as its tokens, so the tokenizer, its options and the files of embeddings count with it.
    """
    try:
        return identity(clip), [digest(clip.tokenize(prompt)) for prompt in prompts]
    except TypeError as error:
        log.info("These text encoders can't be told from others (%s): prompts are not kept on disk.", error)
        return None, prompts


def identity(clip) -> str:
    """A digest of all that a CLIP makes of tokens; loads nothing and moves nothing.

    That is: its classes, the settings of each encoder, its weights (name, type, shape and values, large ones sampled,
    see `digest`) as they are without patches, its patches (LoRA) with their strengths, CLIP Set Last Layer, and
    whatever else is hung on its patcher. Raises TypeError if something there has no digest.
    """
    patcher, model = clip.patcher, clip.cond_stage_model
    model.reset_clip_options()  # as the host does before it encodes; else they are those of the last one
    hung = [patcher.object_patches, patcher.weight_wrapper_patches, patcher.injections, patcher.additional_models]
    hung += [patcher.wrappers, patcher.callbacks, patcher.model_options]
    hung += [patcher.hook_patches, patcher.forced_hooks, clip.apply_hooks_to_conds]
    return digest(
        [
            FORMAT,
            _kind(model),
            {name: _settings(part) for name, part in model.named_children()},
            _weights(patcher),
            {key: [_patch(*patch) for patch in patches] for key, patches in patcher.patches.items()},
            clip.layer_idx,
            hung,
        ]
    )


def _kind(thing) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _settings(part: nn.Module) -> list:
    """Class and plain attributes of one encoder: its default layer, masks, special tokens and the like."""
    if not hasattr(part, "reset_clip_options"):
        return [_kind(part)]
    plain = (bool, int, float, str, list, tuple, dict)
    return [_kind(part), {k: v for k, v in vars(part).items() if isinstance(v, plain) and not k.startswith("_")}]


def _weights(patcher) -> dict[str, Tensor]:
    """The weights without patches: where the host merged patches into them, those that it keeps to undo it."""
    weights = patcher.model_state_dict()
    for kept in (patcher.hook_backup, patcher.backup):
        for name, (weight, _) in kept.items():
            weights |= weight.state_dict(name) if hasattr(weight, "state_dict") else {name: weight}  # quantised: parts
    return weights


def _patch(strength, what, strength_model, offset, function) -> list:
    """One of a patcher's patches in values that have a digest."""
    values = [_kind(what), what.weights] if isinstance(what, WeightAdapterBase) else what
    return [strength, values, strength_model, offset, function]
