"""A trainable adapter on a model of the host, made and injected by the host's own means."""

import comfy.model_management
import torch
from comfy.weight_adapter import adapter_maps
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor, nn

from .differentiable import blocks

ATTACHMENT = "srpo"


class Adapter:
    """One weight adapter of the host for each Linear of the model's blocks; zero at the start, in fp32.

    kind: a key of the host's `adapter_maps`; rank and alpha as there (for LoKr the factor, for OFT the block size).
    parameters: the trained tensors by the names they have in a LoRA file.
    Raises ValueError for a rank that does not fit the model's layers.
    """

    def __init__(self, patcher, kind: str = "LoRA", rank: int = 16, alpha: float = 16.0, seed: int = 0):
        layers = target_layers(patcher.model)
        _check_rank(rank, layers)
        device = comfy.model_management.get_torch_device()
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modules = {name: _create(kind, layer, rank, alpha).to(device) for name, layer in layers.items()}
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def attach(self, patcher):
        """A clone of the patcher with this adapter injected; the model itself is shared and untouched."""
        patcher = patcher.clone()
        manager = BypassInjectionManager()
        for name, module in self.modules.items():
            manager.add_adapter(name, module)
        patcher.set_injections(ATTACHMENT, manager.create_injections(patcher.model))
        patcher.set_attachments(ATTACHMENT, self)
        return patcher

    def state_dict(self) -> dict[str, Tensor]:
        """The content of a LoRA file: a copy, on the CPU."""
        return {
            f"{name}.{key}": tensor.detach().cpu().clone()
            for name, module in self.modules.items()
            for key, tensor in module.state_dict().items()
        }


def adapter_of(patcher) -> Adapter | None:
    """The adapter that this MODEL carries, also when it was cloned by other nodes since."""
    return patcher.get_attachment(ATTACHMENT)


def target_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Linears in the blocks of the diffusion model, by their names in it."""
    names = {module: name for name, module in model.named_modules()}
    return {
        names[layer]: layer
        for block in blocks(model.diffusion_model)
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    }


def _check_rank(rank: int, layers: dict[str, nn.Module]):
    if not layers:
        raise ValueError("Found no blocks with linear layers in this model to put an adapter on.")
    name = min(layers, key=lambda name: min(layers[name].in_features, layers[name].out_features))
    smallest = min(layers[name].in_features, layers[name].out_features)
    if not 1 <= rank <= smallest:
        raise ValueError(f"The rank is {rank}; choose 1 to {smallest}, the width of the smallest layer ({name}).")


def _create(kind: str, layer: nn.Module, rank: int, alpha: float) -> nn.Module:
    # Only shape and device are read of it; the weight itself may be packed or elsewhere.
    weight = torch.empty(1).expand(layer.out_features, layer.in_features)
    adapter = adapter_maps[kind].create_train(weight, rank=rank, alpha=alpha).train()
    adapter.requires_grad_(True)
    adapter.alpha.requires_grad_(False)
    adapter.h = _in_the_type_of_its_input(adapter.h)
    return adapter


def _in_the_type_of_its_input(h):
    """The parameters are fp32; the model may run in bf16 or fp16."""

    def cast(x: Tensor, base_out: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=x.dtype, enabled=x.dtype in (torch.bfloat16, torch.float16)):
            return h(x, base_out)

    return cast
