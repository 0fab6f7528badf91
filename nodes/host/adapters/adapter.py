"""A trainable adapter on a model of the host, made and injected by the host's own means."""

from pathlib import Path

import comfy.lora
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....srpo_core.seeds import derived_seed
from ..gradients.differentiable import blocks
from ..gradients.frozen import is_linear
from ..gradients.injection import KEY, Injection
from ..patcher.carried import as_carried
from .layers import create
from .readable import answer_with_adapter
from .settings import AdapterSettings
from .targets import TARGETS, belongs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # by `precision`


class Adapter:
    """One weight adapter of the host for each Linear of a target; zero at the start.

    parameters: the trained tensors by the names they have in a LoRA file. device: that they are on, the MODEL's own.
    Raises ValueError for a rank that does not fit the model's layers, and for a target of which it has none.
    """

    def __init__(self, patcher: ModelPatcher, settings: AdapterSettings):
        self.settings = settings
        self.device = patcher.load_device
        with as_carried(patcher) as model:
            layers = target_layers(model, settings.target, whole=settings.whole_layers)
        if not settings.whole_layers:
            _check_rank(settings.rank, layers)
        dtype = DTYPES[settings.precision]
        self._shapes = _shapes(layers)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("adapter", settings.seed))
            made = {name: create(layer, settings, dtype) for name, layer in layers.items()}
            self.modules = {name: module.to(self.device) for name, module in made.items()}
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def attach(self, patcher: ModelPatcher):
        """A clone of the patcher with this adapter injected; the model itself is shared and untouched.

        Nodes that read its weights, or merge them, get them with the adapter as it is then.
        """
        patcher = patcher.clone()
        Injection(self.modules, self.device).put_into(patcher)
        patcher.set_attachments(KEY, self)
        answer_with_adapter(patcher)
        return patcher

    def fits(self, patcher: ModelPatcher) -> bool:
        """Whether it is one for this MODEL: for the same layers, on the device that the MODEL computes on."""
        with as_carried(patcher) as model:
            try:
                layers = target_layers(model, self.settings.target, whole=self.settings.whole_layers)
            except ValueError:
                return False
        return patcher.load_device == self.device and _shapes(layers) == self._shapes

    def patches(self, model: nn.Module, lasting: bool = True) -> dict:
        """The host's patches of the model's weights that the LoRA file of this moment would give.

        lasting: they hold copies, and stay as they are when training goes on.
        """
        state = self.state_dict() if lasting else self._tensors()
        return comfy.lora.load_lora(state, comfy.lora.model_lora_keys_unet(model, {}))

    def state_dict(self) -> dict[str, Tensor]:
        """The content of a LoRA file: a copy, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        states = {name: module.state_dict() for name, module in self.modules.items()}
        return {f"{name}.{key}": tensor.detach() for name, state in states.items() for key, tensor in state.items()}


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
    if bare := [name for name, layer in chosen.items() if getattr(layer, "weight", None) is None]:
        raise ValueError(
            f"{bare[0]} has no weight of its own in this ComfyUI, so there is nothing to put an adapter on: choose "
            "another target in SRPO Trainer."
        )
    if not chosen:
        there = ", ".join(other for other in TARGETS if any(belongs(name, other) for name in layers))
        raise ValueError(f'This model ({type(model).__name__}) has no target "{target}": choose one of {there}.')
    return chosen


def save_model(patcher: ModelPatcher, adapter: Adapter, file: Path, metadata: dict[str, str]):
    """Write the model with the differences of a FULL adapter in its weights, as the host's loaders take it.

    patcher: the MODEL without the adapter; its types and the names of its weights are kept.
    """
    parts = {"diff": "weight", "diff_b": "bias"}
    names = {f"{name}.{key}": f"{name}.{part}" for name in adapter.modules for key, part in parts.items()}
    merged = patcher.clone()
    merged.add_patches({names[name]: ("diff", (p.detach(),)) for name, p in adapter.parameters.items()})
    comfy.sd.save_checkpoint(str(file), merged, metadata=metadata)


def _shapes(layers: dict[str, nn.Linear]) -> dict[str, tuple[int, int, bool]]:
    return {name: (layer.out_features, layer.in_features, layer.bias is None) for name, layer in layers.items()}


def _check_rank(rank: int, layers: dict[str, nn.Module]):
    name = min(layers, key=lambda name: min(layers[name].in_features, layers[name].out_features))
    smallest = min(layers[name].in_features, layers[name].out_features)
    if not 1 <= rank <= smallest:
        raise ValueError(f"The rank is {rank}; choose 1 to {smallest}, the width of the smallest layer ({name}).")
