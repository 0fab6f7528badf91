"""A trainable adapter on a model of the host, made and injected by the host's own means."""

import contextlib
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from .adapter_kinds import FULL, create
from .differentiable import blocks, replaced_forwards
from .frozen import is_linear
from .targets import TARGETS, belongs

ATTACHMENT = "srpo"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Adapter:
    """One weight adapter of the host for each Linear of a target; zero at the start.

    kind: a key of the host's `adapter_maps`; rank and alpha as there (for LoKr the factor, for OFT the block size and
    the limit of the rotation); or FULL, which has neither: whole layers, also those beside the model's blocks.
    target: a key of TARGETS. precision: of the trained parameters, a key of PRECISIONS.
    parameters: the trained tensors by the names they have in a LoRA file.
    Raises ValueError for a rank that does not fit the model's layers, and for a target of which it has none.
    """

    def __init__(
        self,
        patcher,
        kind: str = "LoRA",
        rank: int = 16,
        alpha: float = 16.0,
        seed: int = 0,
        target: str = "all",
        precision: str = "fp32",
    ):
        layers = target_layers(patcher.model, target, whole=kind == FULL)
        if kind != FULL:
            _check_rank(rank, layers)
        device, dtype = comfy.model_management.get_torch_device(), PRECISIONS[precision]
        self.kind = kind
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modules = {n: create(kind, layer, rank, alpha, dtype).to(device) for n, layer in layers.items()}
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def attach(self, patcher):
        """A clone of the patcher with this adapter injected; the model itself is shared and untouched."""
        patcher = patcher.clone()
        patcher.set_injections(ATTACHMENT, [_injection(self.modules, patcher.model)])
        patcher.set_attachments(ATTACHMENT, self)
        return patcher

    def state_dict(self) -> dict[str, Tensor]:
        """The content of a LoRA file: a copy, on the CPU."""
        return {
            f"{name}.{key}": tensor.detach().cpu().clone()
            for name, module in self.modules.items()
            for key, tensor in module.state_dict().items()
        }


def _injection(adapters: dict[str, nn.Module], model: nn.Module) -> PatcherInjection:
    """The host's hooks, put in and out in one go: it does that four times a branch.

    Its own way of it moves each adapter to where that is already, and took a tenth of a branch of FLUX.
    """
    hooks = [BypassForwardHook(model.get_submodule(name), adapter) for name, adapter in adapters.items()]
    forwards, injected = {hook.module: hook._bypass_forward for hook in hooks}, contextlib.ExitStack()

    def inject(_):
        if hooks[0].original_forward is None:
            for hook in hooks:
                hook.original_forward = hook.module.forward
            injected.enter_context(replaced_forwards(forwards))

    def eject(_):
        injected.close()
        for hook in hooks:
            hook.original_forward = None

    return PatcherInjection(inject, eject)


def adapter_of(patcher) -> Adapter | None:
    """The adapter that this MODEL carries, also when it was cloned by other nodes since."""
    return patcher.get_attachment(ATTACHMENT)


def without_adapter(patcher):
    """A clone of the patcher that carries no adapter."""
    patcher = patcher.clone()
    patcher.remove_injections(ATTACHMENT)
    patcher.remove_attachments(ATTACHMENT)
    return patcher


def target_layers(model: nn.Module, target: str = "all", whole: bool = False) -> dict[str, nn.Linear]:
    """The Linears of a target in the blocks of the diffusion model, or in the whole of it, by their names.

    Raises ValueError where there are none.
    """
    names = {module: name for name, module in model.named_modules()}
    roots = [model.diffusion_model] if whole else blocks(model.diffusion_model)
    layers = {names[layer]: layer for root in roots for layer in root.modules() if is_linear(layer)}
    if not layers:
        raise ValueError("Found no blocks with linear layers in this model to put an adapter on.")
    chosen = {name: layer for name, layer in layers.items() if belongs(name, target)}
    if not chosen:
        there = ", ".join(other for other in TARGETS if any(belongs(name, other) for name in layers))
        raise ValueError(f'This model ({type(model).__name__}) has no target "{target}": choose one of {there}.')
    return chosen


def save_model(patcher, adapter: Adapter, file: Path, metadata: dict[str, str]):
    """Write the model with the differences of a FULL adapter in its weights, as the host's loaders take it.

    patcher: the MODEL without the adapter; its types and the names of its weights are kept.
    """
    parts = {"diff": "weight", "diff_b": "bias"}
    names = {f"{name}.{key}": f"{name}.{part}" for name in adapter.modules for key, part in parts.items()}
    merged = patcher.clone()
    merged.add_patches({names[name]: ("diff", (p.detach(),)) for name, p in adapter.parameters.items()})
    comfy.sd.save_checkpoint(str(file), merged, metadata=metadata)


def _check_rank(rank: int, layers: dict[str, nn.Module]):
    name = min(layers, key=lambda name: min(layers[name].in_features, layers[name].out_features))
    smallest = min(layers[name].in_features, layers[name].out_features)
    if not 1 <= rank <= smallest:
        raise ValueError(f"The rank is {rank}; choose 1 to {smallest}, the width of the smallest layer ({name}).")
