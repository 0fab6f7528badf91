"""Adapters on the forwards of a model's layers, beside whatever else is injected into it.

The host takes a MODEL's injections out in the order in which it put them in. So of two on one layer the first puts back
the layer's own forward, and the second then the first's. Ours is put in last, and once all are out, every forward is
what it was before the first of them came.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from ..patcher.carried import as_carried
from ..patcher.forwards import replaced_forwards
from ..patcher.training_mode import training_mode
from .frozen import is_alone, is_stored_in_integers
from .guests import OrdinaryInputs

KEY = "srpo"  # of what we put into a MODEL's dictionaries


class Injection:
    """Adapters by the names of their layers, for a MODEL and its clones. None of them: others come out in order alone.

    device: of the adapters; they compute there, wherever a MODEL's layers do.
    """

    def __init__(self, adapters: dict[str, nn.Module], device: torch.device):
        self._adapters = adapters
        self._device = device
        self._layers: dict[nn.Module, list[nn.Module]] = {}
        self._hooks: dict[nn.Module, BypassForwardHook] = {}
        self._noted: dict[nn.Module, list] = {}  # by model: clones may have models of their own, on other devices
        self._in: dict[nn.Module, contextlib.ExitStack] = {}

    def put_into(self, patcher: ModelPatcher):
        """Before the injections that it has, so that this sees the layers first.

        A kernel that reads the weight of a layer passes by its forward, and so the adapter; where there may be such
        kernels, the MODEL samples as it trains, without them.
        """
        with as_carried(patcher):
            fused = any(map(is_stored_in_integers, self._layers_of(patcher)))
        if fused:
            patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _as_in_training)
        patcher.injections = {KEY: [PatcherInjection(self._note, self._take_off)], **patcher.injections}
        patcher.add_callback_with_key(CallbacksMP.ON_INJECT_MODEL, KEY, self._put_on)
        patcher.add_callback_with_key(CallbacksMP.ON_EJECT_MODEL, KEY, self._restore)

    def _note(self, patcher: ModelPatcher):
        """The forwards as they are, of all modules that may get another one."""
        if patcher.model in self._noted:
            return
        alone = patcher.injections.keys() == {KEY}
        modules = self._layers_of(patcher) if alone else patcher.model.modules()
        self._noted[patcher.model] = [(module.__dict__, module.__dict__.get("forward")) for module in modules]

    def _put_on(self, patcher: ModelPatcher):
        if patcher.model in self._in:
            return
        forwards = {}
        for layer, adapter in zip(self._layers_of(patcher), self._adapters.values()):
            hook = self._hooks.get(layer) or self._hooks.setdefault(layer, BypassForwardHook(layer, adapter))
            hook.original_forward = layer.forward
            here = patcher.load_device == self._device
            adapted = hook._bypass_forward if here else partial(_elsewhere, hook, self._device)
            forwards[layer] = partial(_with_input_alone, adapted)
        stack = self._in[patcher.model] = contextlib.ExitStack()
        stack.enter_context(replaced_forwards(forwards))

    def _take_off(self, patcher: ModelPatcher):
        if stack := self._in.pop(patcher.model, None):
            stack.close()

    def _restore(self, patcher: ModelPatcher):
        self._take_off(patcher)
        for attributes, forward in self._noted.pop(patcher.model, ()):
            if forward is not None:
                attributes["forward"] = forward
            else:
                attributes.pop("forward", None)

    def _layers_of(self, patcher: ModelPatcher) -> list[nn.Module]:
        """The layers, in the order of the adapters; looked up once, unless the MODEL replaces parts of its model."""
        model = patcher.model
        if any(name.startswith("diffusion_model") for name in patcher.object_patches.keys()):
            return [model.get_submodule(name) for name in self._adapters]
        if model not in self._layers:
            self._layers[model] = [model.get_submodule(name) for name in self._adapters]
        return self._layers[model]


def take_out_of(patcher: ModelPatcher):
    """Undo `put_into`, and all else of ours, on a MODEL."""
    patcher.remove_injections(KEY)
    patcher.remove_attachments(KEY)
    patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    for kind in list(patcher.callbacks):
        patcher.remove_callbacks_with_key(kind, KEY)


def _as_in_training(apply_model: Callable, *args: Any, **kwargs: Any):
    with training_mode():
        return apply_model(*args, **kwargs)


def _with_input_alone(adapted: Callable, x: Tensor, *args: Any, input_act: str | None = None, **kwargs: Any) -> Tensor:
    """An adapted layer's output where a newer host has the layer do more: the adapter is on what the weight is on.

    So an activation comes first. Raises ValueError for what else there may be.
    """
    activations = getattr(comfy.ops, "INPUT_ACT_EAGER", {})
    if input_act in activations:
        x = activations[input_act](x)
        input_act = None
    more = kwargs | ({"input_act": input_act} if input_act else {})
    if not is_alone(args, more):
        names = [*(["more than one input"] if args else []), *(name for name, v in more.items() if v is not None)]
        raise ValueError(
            f"This ComfyUI lets a layer that is trained do more than its weights do ({', '.join(names)}), and an "
            'adapter would not be part of that: choose another target in SRPO Trainer, such as "attention".'
        )
    return adapted(x)


def eject_all(model: nn.Module):
    """Take out what any MODEL that is loaded has put into this model; before a MODEL samples, the host puts it in."""
    for loaded in comfy.model_management.current_loaded_models:
        if loaded.model is not None and loaded.model.model is model:
            loaded.model.eject_model()


@contextlib.contextmanager
def calls_noted(patcher: ModelPatcher, layers: dict[str, nn.Module]) -> Iterator[set[str]]:
    """The names of those layers whose forwards are called, beneath what the host injects meanwhile."""
    called: set[str] = set()
    eject_all(patcher.model)
    with replaced_forwards({layer: partial(_noted, called, name, layer.forward) for name, layer in layers.items()}):
        try:
            yield called
        finally:
            eject_all(patcher.model)


def _noted(called: set[str], name: str, forward: Callable, *args: Any, **kwargs: Any):
    called.add(name)
    return forward(*args, **kwargs)


@contextlib.contextmanager
def injected(patcher: ModelPatcher) -> Iterator[None]:
    """With the MODEL's injections in. Gradients pass those of others too, whose tensors are constants."""
    others = patcher.injections.keys() - {KEY}
    before = {module: module.__dict__.get("forward") for module in patcher.model.modules()} if others else {}
    patcher.inject_model()
    try:
        changed = {m: m.__dict__["forward"] for m, f in before.items() if m.__dict__.get("forward") not in (None, f)}
        with replaced_forwards({module: partial(_past_constants, forward) for module, forward in changed.items()}):
            yield
    finally:
        patcher.eject_model()


def _past_constants(forward: Callable, *args: Any, **kwargs: Any):
    with OrdinaryInputs():
        return forward(*args, **kwargs)


def _elsewhere(hook: BypassForwardHook, device: torch.device, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer where it is, its adapter on another device."""
    y = hook.original_forward(x, *args, **kwargs)
    return hook.adapter.bypass_forward(lambda *_, **__: y.to(device), x.to(device)).to(y.device)
