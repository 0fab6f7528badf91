"""What a MODEL carries beside its weights, which many MODELs share: object patches, options, wrappers, injections."""

import contextlib
import types
import weakref
from collections.abc import Iterator
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....srpo_core.digest import WHOLE, digest

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


@contextlib.contextmanager
def as_carried(patcher: ModelPatcher) -> Iterator[nn.Module]:
    """The shared model with this MODEL's object patches, and without those that another MODEL left on it.

    The host leaves them on for as long as a MODEL is loaded. Weights and their patches stay as they are.
    """
    model = patcher.model
    before = {}
    try:
        for name in [*patcher.object_patches, *(patcher.object_patches_backup.keys() - patcher.object_patches.keys())]:
            before[name] = comfy.utils.set_attr(model, name, patcher.get_model_object(name))
        yield model
    finally:
        for name in reversed(before):
            comfy.utils.set_attr(model, name, before[name])


def latent_in(patcher: ModelPatcher, latent: Tensor) -> Tensor:
    """A latent as the VAE gives it, in the space that this MODEL works in."""
    with as_carried(patcher) as model:
        return model.process_latent_in(latent)


def latent_out(patcher: ModelPatcher, latent: Tensor) -> Tensor:
    """A latent as this MODEL works with it, in the space of the VAE."""
    with as_carried(patcher) as model:
        return model.process_latent_out(latent)


def signature(patcher: ModelPatcher, ignore: str = "") -> tuple:
    """A value for all that a MODEL carries: equal where nothing of it has changed, whatever clones it came through.

    Plain values, small tensors and small modules (a model_sampling) count by value; all else, such as a function or
    another model, by identity, so that a node that made it anew counts as a change. The weights themselves are not
    looked at, but the model they belong to and the patches on them are.
    ignore: a key of attachments, injections, callbacks and wrappers that does not count.
    """
    keyed = (patcher.attachments, patcher.injections, *patcher.callbacks.values(), *patcher.wrappers.values())
    parts = [
        *({key: value for key, value in group.items() if key != ignore} for group in keyed),
        patcher.model_options,
        patcher.object_patches,
        patcher.weight_wrapper_patches,
        {key: [other.model for other in models] for key, models in patcher.additional_models.items()},
        [other.patches_uuid.hex for models in patcher.additional_models.values() for other in models],
        list(patcher.hook_patches),
        # The patches themselves, since their uuid is another after each sampling with hooks.
        {
            key: [(scale, _Same(patch), of_weight) for scale, patch, of_weight, *_ in patches]
            for key, patches in patcher.patches.items()
        },
        [patcher.load_device, patcher.force_cast_weights],
    ]
    return (_Same(patcher.model), *(_value(part, frozenset()) for part in parts))


def structure_of(cond: list) -> tuple:
    """What kinds of things a CONDITIONING holds: its entries' names and types, and their hooks and control models."""
    return tuple(tuple((name, _types_in(value)) for name, value in sorted(extra.items())) for _, extra in cond)


def _types_in(value: Any) -> tuple:
    hooks = tuple(_types_in(hook) for hook in getattr(value, "hooks", ()))
    before = getattr(value, "previous_controlnet", None)
    return type(value).__qualname__, hooks, None if before is None else _types_in(before)


def _value(thing: Any, inside: frozenset):
    """inside: the ids of what `thing` lies in; what lies in itself counts by identity."""
    if isinstance(thing, _Same):
        return thing
    if isinstance(thing, PLAIN):
        return type(thing), repr(thing)
    if id(thing) in inside:
        return _Same(thing)
    inside = inside | {id(thing)}
    if isinstance(thing, dict):
        filled = [(key, value) for key, value in thing.items() if not (isinstance(value, dict) and not value)]
        return dict, tuple((_value(key, inside), _value(value, inside)) for key, value in filled)
    if isinstance(thing, (list, tuple)):
        return type(thing), tuple(_value(item, inside) for item in thing)
    if isinstance(thing, (set, frozenset)):
        return set, frozenset(_value(item, inside) for item in thing)
    if isinstance(thing, types.MethodType):
        return _Same(thing.__self__), _Same(thing.__func__)
    if type(thing) in (Tensor, nn.Parameter) and _is_small(thing):
        return Tensor, digest(thing)
    if isinstance(thing, nn.Module) and all(map(_is_small, (*thing.parameters(), *thing.buffers()))):
        classes = tuple((kind.__module__, kind.__qualname__) for kind in type(thing).__mro__)
        return classes, _value(vars(thing), inside)
    return _Same(thing)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= WHOLE and tensor.device.type != "meta"


class _Same:
    """Equal to another of the very same object, without keeping that alive where it need not be."""

    def __init__(self, thing: Any):
        self._id = id(thing)
        try:
            self._thing = weakref.ref(thing)
        except TypeError:
            self._thing = lambda: thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._id == other._id and self._thing() is other._thing() is not None

    def __hash__(self) -> int:
        return self._id
