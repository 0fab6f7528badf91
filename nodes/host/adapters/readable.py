"""The weights of a MODEL with an adapter, for nodes that read them instead of running it.

The host saves and merges a MODEL's weights with its patches, and knows nothing of what is injected. So a MODEL with an
adapter answers with the patches that the adapter's file of that moment would give. Nothing is patched to sample or to
train.
"""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ..gradients.injection import KEY, Injection, take_out_of
from ..patcher.loading import load


def adapter_of(patcher: ModelPatcher):
    """The adapter that this MODEL carries, also when it was cloned by other nodes since; None if it carries none."""
    return patcher.get_attachment(KEY)


def without_adapter(patcher: ModelPatcher):
    """A clone of the patcher that carries no adapter."""
    patcher = patcher.clone()
    _strip(patcher)
    if patcher.injections:  # of others, which come out in order by ours alone
        Injection({}, patcher.load_device).put_into(patcher)
    return patcher


def merged(patcher: ModelPatcher):
    """A clone of the patcher in whose weights the adapter is, by patches: to use before training goes on."""
    adapter = adapter_of(patcher)
    patcher = without_adapter(patcher)
    patcher.add_patches(adapter.patches(patcher.model, lasting=False))
    return patcher


def answer_with_adapter(patcher: ModelPatcher):
    """Let this MODEL, and the clones of it, answer so. Each by itself: a pack's patcher may change its class."""
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, lambda _, clone: answer_with_adapter(clone))
    me = weakref.ref(patcher)  # the host goes by when a patcher is gone
    for answer in _ANSWERS:
        patcher.__dict__[answer.__name__] = partial(answer, me)


def get_key_patches(me: Callable[[], ModelPatcher], filter_prefix: str | None = None) -> dict[str, list]:
    """Each weight, and the patches on it, as the host hands them to a node that merges."""
    patcher = me()
    found = type(patcher).get_key_patches(patcher, filter_prefix)
    for place, patch in adapter_of(patcher).patches(patcher.model).items():
        key, offset, function = _place(place)
        if key in found:
            found[key] = [*found[key], (1.0, patch, 1.0, offset, function)]
    return found


def model_state_dict_for_saving(
    me: Callable[[], ModelPatcher], model: nn.Module | None = None, prefix: str = ""
) -> dict[str, torch.Tensor]:
    whole = merged(me())
    load(whole)  # the host reads patched weights where they are loaded
    return whole.model_state_dict_for_saving(model, prefix)


def add_patches(
    me: Callable[[], ModelPatcher], patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0
) -> list:
    """A LoRA lies beside the adapter; a merge is of weights, so it takes the adapter as it is at this moment."""
    patcher = me()
    if strength_model != 1.0 or any(isinstance(patch, list) for patch in patches.values()):
        now = adapter_of(patcher).patches(patcher.model)
        _strip(patcher)
        patcher.add_patches(now)
    return type(patcher).add_patches(patcher, patches, strength_patch, strength_model)


_ANSWERS = (get_key_patches, model_state_dict_for_saving, add_patches)


def _strip(patcher: ModelPatcher):
    take_out_of(patcher)
    for answer in _ANSWERS:
        patcher.__dict__.pop(answer.__name__, None)


def _place(place: str | tuple) -> tuple:
    """Where a patch goes: the weight's key, and the part of it or None, and the function on it or None."""
    key, *rest = (place,) if isinstance(place, str) else place
    return key, *rest, *[None] * (2 - len(rest))
