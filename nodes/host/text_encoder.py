"""Prompts through the host's text encoders, once for each prompt and encoder."""

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ...srpo_core.data.conditionings import Conditioning, Conditionings
from ...srpo_core.digest import digest
from .progress import Steps

log = logging.getLogger(__name__)

FORMAT = 1  # of what is stored; another one encodes everything anew


class Encoded(Sequence):
    """The CONDITIONING of each prompt, encoded when it is first asked for.

    They are kept on disk in `folder`/<identity of the CLIP>/<digest of the prompt's tokens>; those of text encoders
    that can't be identified, such as ones with hooks and functions, in memory alone. Item i is a list of one pair.
    picture: gives the picture (1, H, W, 3) that the text encoders see beside prompt i; None where they see none.
    Raises ValueError without a CLIP, and where it reads no pictures.
    """

    def __init__(
        self, clip: CLIP, prompts: Sequence[str], folder: Path, picture: Callable[[int], Tensor] | None = None
    ):
        if clip is None:
            raise ValueError("There is no text encoder: the file that clip comes from has none. Use Load CLIP (Dual).")
        self.clip = clip.clone()  # what others set on theirs afterwards is not ours
        self.prompts = prompts
        self.picture = picture
        if picture and not reads_pictures(clip):
            raise ValueError(
                f"These text encoders ({type(clip.tokenizer).__name__}) read no pictures: switch off that they see the "
                "reference, or load those that belong to the model, with the right type."
            )
        self.identity = self._identity()
        self.known = Conditionings(folder / self.identity if self.identity else None)
        self._keys: dict[int, str] = {}  # of those that are ready
        self._on_step = Steps()

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> list[Conditioning]:
        if not 0 <= index < len(self.prompts):
            raise IndexError(index)
        self.prepare([index])
        return [self.known.get(self._keys[index])]

    def prepare(self, indices: Iterable[int]):
        """Make these ready: runs the text encoders for unknown ones, and does not load them where all are known.

        Each is kept as soon as it is encoded, so cancel loses none. Text encoders that were loaded leave the device
        afterwards: training needs the room. Raises ValueError for a prompt that they can't read, and where they are
        no longer what they were.
        """
        keys = {index: self._key(index) for index in dict.fromkeys(indices) if index not in self._keys}
        if not keys:
            return
        missing = self.known.missing(keys.values())
        if missing:
            self._encode({key: index for index, key in keys.items()}, missing)
        log.info("Prompts: %d encoded, %d known before.", len(missing), len(set(keys.values())) - len(missing))
        self._keys |= keys
        if len(self._keys) == len(self.prompts):
            self.clip = None  # gigabytes that others may need

    @torch.inference_mode()  # as nodes run, wherever a prompt is asked for; see loading.py
    def _encode(self, indices: dict[str, int], missing: list[str]):
        if self._identity() != self.identity:
            raise ValueError(
                "The text encoders are no longer what they were when SRPO Prompts or SRPO Photos ran: another node has "
                "changed their weights in place. Clear ComfyUI's execution cache or restart it, and queue again."
            )
        try:
            for done, key in enumerate(missing):
                self._on_step(done, len(missing))
                tokens = self._tokens(indices[key])
                found = self.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)
                _check_not_scheduled(found)
                self.known.add(key, found[0])
        finally:
            comfy.model_management.unload_model_and_clones(self.clip.patcher)

    def _key(self, index: int) -> str:
        """A prompt counts as its tokens, so the tokenizer, its options and the files of embeddings count with it."""
        prompt = self.prompts[index]
        named = f"{index} {prompt}" if self.picture else prompt
        try:
            return self._digest(index) if self.known.folder else named
        except RecursionError:
            raise ValueError(f'The text encoder can\'t read a prompt with so many brackets: "{prompt[:80]}".') from None
        except TypeError as error:
            self._keep_in_memory(error)
            return named

    def _digest(self, index: int) -> str:
        """Of the tokens, and of all that is in the picture: of a large tensor `digest` takes samples."""
        tokens = digest(self._tokens(index))
        if self.picture is None:
            return tokens
        return digest([tokens, hashlib.blake2b(self.picture(index).contiguous().numpy()).hexdigest()])

    def _tokens(self, index: int) -> dict:
        """With a picture as ComfyUI's own node for editing gives it."""
        shown = {"images": [self.picture(index)]} if self.picture else {}
        return self.clip.tokenize(self.prompts[index], **shown)

    def _keep_in_memory(self, why: TypeError):
        """From now on, all of them: tokens that have no digest may stand for another thing tomorrow."""
        log.info("These prompts can't be told from others (%s): they are not kept on disk.", why)
        self.known = Conditionings()
        self._keys.clear()

    def _identity(self) -> str | None:
        try:
            return identity(self.clip)
        except TypeError as error:
            log.info("These text encoders can't be told from others (%s): prompts are not kept on disk.", error)
            return None


def reads_pictures(clip: CLIP) -> bool:
    """Whether its tokenizer takes pictures beside a text."""
    return "images" in inspect.signature(clip.tokenizer.tokenize_with_weights).parameters


def _check_not_scheduled(conditioning: list):
    """A prompt of a dataset is one conditioning, whatever the noise level."""
    if len(conditioning) > 1:
        raise ValueError(
            f"The hooks of these text encoders change over the steps, which makes {len(conditioning)} conditionings of "
            "a prompt, and training takes one: switch schedule_clip off in Set CLIP Hooks."
        )


def identity(clip: CLIP) -> str:
    """A digest of all that a CLIP makes of tokens; loads nothing and moves nothing.

    That is: its classes, the settings of each encoder, its weights (name, type, shape and values, large ones sampled,
    see `digest`) as they are without patches, its patches (LoRA) with their strengths, CLIP Set Last Layer, and
    whatever else is hung on its patcher. Raises TypeError if something there has no digest.
    """
    patcher = clip.patcher
    model = clip.cond_stage_model
    model.reset_clip_options()  # as the host does before it encodes; else they are those of the last one
    hung = [patcher.object_patches, patcher.weight_wrapper_patches, patcher.injections, patcher.additional_models]
    hung += [patcher.wrappers, patcher.callbacks, patcher.model_options]
    hung += [patcher.hook_patches, patcher.forced_hooks, clip.apply_hooks_to_conds]
    return digest(
        [
            FORMAT,
            _type_name(model),
            {name: _settings(part) for name, part in model.named_children()},
            _weights(patcher),
            {key: [_patch(*patch) for patch in patches] for key, patches in patcher.patches.items()},
            clip.layer_idx,
            hung,
        ]
    )


def _type_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _settings(part: nn.Module) -> list:
    """Class and plain attributes of one encoder: its default layer, masks, special tokens and the like."""
    if not hasattr(part, "reset_clip_options"):
        return [_type_name(part)]
    plain = (bool, int, float, str, list, tuple, dict)
    return [_type_name(part), {k: v for k, v in vars(part).items() if isinstance(v, plain) and not k.startswith("_")}]


def _weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    """The weights without patches: where the host merged patches into them, those that it keeps to undo it."""
    weights = patcher.model_state_dict()
    for kept in (patcher.hook_backup, patcher.backup):
        for name, (weight, _) in kept.items():
            weights |= weight.state_dict(name) if hasattr(weight, "state_dict") else {name: weight}  # quantised: parts
    return weights


def _patch(strength: float, what: Any, strength_model: float, offset: Any, function: Any) -> list:
    """One of a patcher's patches in values that have a digest."""
    values = [_type_name(what), what.weights] if isinstance(what, WeightAdapterBase) else what
    return [strength, values, strength_model, offset, function]
