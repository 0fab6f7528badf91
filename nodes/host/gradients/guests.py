"""What the host runs in a step beside the diffusion model: ControlNets, model patches, other packs' code.

They are constants to us, and may be made of inference tensors, which autograd refuses to save. A ControlNet needs no
gradient, since its inputs have none; a patch may lie between trained blocks and passes them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from copy import copy as shallow
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.hooks import WeightHook
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import cond_has_hooks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..patcher.loading import own
from ..patcher.reach import TooMuch, reached
from .compiled import COMPILE_KEY
from .frozen import frozen_forwards
from .ordinary import PLAIN_TYPES, ordinary

OF_A_SAMPLING = ("on_pre_run", "on_prepare_state", "on_cleanup")  # the host's callbacks
CONSTANTS = (ModelPatcher, ControlBase, WeightHook)  # classes of the host with much in them, and no gradient
QUIET = ("optimized_attention_override", "rope_options", "wrappers", "callbacks")  # options that are no guests


def has_guests(patcher: ModelPatcher, cond: list, ours: str) -> bool:
    """Whether more than the model takes part in its step, or changes the model for the length of one sampling.

    ours: the key of our own wrappers and callbacks.
    """
    options = dict(patcher.model_options)
    of_blocks = options.pop("transformer_options", {})
    registers = [*patcher.wrappers.values(), *of_blocks.get("wrappers", {}).values()]
    for callbacks in (patcher.callbacks, of_blocks.get("callbacks", {})):
        registers += [callbacks.get(kind, {}) for kind in OF_A_SAMPLING]
    keys = {key for by_key in registers for key, found in by_key.items() if found}
    return bool(
        keys - {ours, COMPILE_KEY}
        or any(options.values())
        or any(value for name, value in of_blocks.items() if name not in QUIET)
        or any(callable(patch) and not isinstance(patch, nn.Module) for patch in patcher.object_patches.values())
        or any(key in c[1] for c in cond for key in ("gligen", "additional_models"))
        or cond_has_hooks(cond)
    )


class Guests:
    """The modules beside `root` in what is reachable from `values`: options, conditionings, injections.

    trained: parameters that are no constants.
    """

    def __init__(self, root: nn.Module, values: Iterable, trained: Iterable[nn.Parameter]):
        try:
            found = _modules_of(reached(values, CONSTANTS))
        except TooMuch:  # their tensors are ordinary ones all the same, and the check of gradients sees the rest
            found = []
        own_ones = set(root.modules())
        trained = set(map(id, trained))
        self.modules = [m for m in found if m not in own_ones and trained.isdisjoint(map(id, m.parameters()))]
        forwards = {m: forward for guest in self.modules for m, forward in frozen_forwards(guest).items()}
        self.forwards: dict[nn.Module, Callable] = {m: f for m, f in forwards.items() if m not in own_ones}

    @contextlib.contextmanager
    def constant(self) -> Iterator[None]:
        """Their parameters get no gradient, and the tensors that they bring along are ordinary ones to autograd."""
        learning = [p for m in self.modules for p in m.parameters() if p.requires_grad and not p.is_inference()]
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            with self.ordinary():
                yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    def ordinary(self) -> contextlib.AbstractContextManager:
        """The tensors' half of `constant`; a backward is outside of it, and so is what runs again there."""
        return OrdinaryInputs()


def _modules_of(found: Iterable) -> list[nn.Module]:
    models = (value.model if isinstance(value, ModelPatcher) else value for value in found)
    return [model for model in models if isinstance(model, nn.Module)]


class OrdinaryInputs(TorchFunctionMode):
    """Where a gradient passes, operations get ordinary tensors in place of inference tensors, in the same memory."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and func.__name__ != "__set__":
            tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
            if any(t.requires_grad for t in tensors) and any(t.is_inference() for t in tensors):
                args = _ordinary(args)
                kwargs = {name: _ordinary(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _flat(values: Iterable) -> Iterator:
    for value in values:
        if type(value) in (list, tuple):
            yield from value
        else:
            yield value


def _ordinary(value: Any):
    if type(value) in (list, tuple):
        return type(value)(map(_ordinary, value))
    return ordinary(value) if type(value) in PLAIN_TYPES and value.is_inference() else value


class ConstantControl:
    """A ControlNet of a conditioning, run as a sampler runs it; what it gives are constants."""

    def __init__(self, control: ControlBase):
        self._control = control

    def get_control(self, *args: Any, **kwargs: Any):
        with torch.inference_mode():
            found = self._control.get_control(*args, **kwargs)
        return tree_map_only(Tensor, own, found)

    def __getattr__(self, name: str):
        return getattr(self._control, name)


def make_constant(conds: list[dict]):
    """Give conditionings, as the host prepared them for one sampling, ordinary tensors, and ControlNets' constants."""
    controls = {id(cond["control"]): ConstantControl(cond["control"]) for cond in conds if cond.get("control")}
    for cond in conds:
        if cond.get("control"):
            cond["control"] = controls[id(cond["control"])]  # the host asks conditionings that share one together
        cond["model_conds"] = {name: _with_own_tensors(value) for name, value in cond["model_conds"].items()}


def _with_own_tensors(value: Any):
    """One of the host's CONDRegular and the like."""
    value = shallow(value)
    value.cond = tree_map_only(Tensor, own, value.cond)
    return value
