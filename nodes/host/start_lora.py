"""A run that begins at a LoRA file: what the host's loader would add to the model, put into a fresh adapter."""

from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase, adapter_maps
from torch import Tensor, nn

from .adapter import Adapter
from .adapter_kinds import FULL


@torch.inference_mode(False)
@torch.no_grad()
def start_at(adapter: Adapter, model: nn.Module, file: Path):
    """Let `adapter`, fresh on `model`, begin as the file, of any layout that the host's loader takes.

    A LoRA takes one of any smaller rank; other kinds take tensors of their own names and shapes. What is not of the
    diffusion model, such as text encoders, the host names in the log.
    Raises ValueError for a file of another model or kind, for layers that are not trained, for too small a rank.
    """
    content = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file), safe_load=True))
    patches = comfy.lora.load_lora(content, comfy.lora.model_lora_keys_unet(model, {}))
    try:
        layers = _by_layer(patches, model)
        _check_layers(layers, adapter)
        for name, parts in layers.items():
            if adapter.kind == "LoRA":
                _take_lora(name, adapter.modules[name], parts)
            else:
                _take_same(name, adapter.modules[name], parts)
    except ValueError as error:
        raise ValueError(f'The run can\'t begin at "{file.name}": {error}') from None


def _by_layer(patches: dict, model: nn.Module) -> dict[str, list[tuple]]:
    """For each layer what the file adds to it: (rows of its output, or None for all; the host's patch)."""
    layers: dict[str, list[tuple]] = {}
    for place, patch in patches.items():
        key, *slices = (place,) if isinstance(place, str) else place
        if len(slices) > 1 or (slices and slices[0][0] != 0):
            raise ValueError(f"it holds {key} in another order than the model, which only a loader can undo.")
        rows = slice(slices[0][1], sum(slices[0][1:])) if slices else None
        layers.setdefault(key.rsplit(".", 1)[0], []).append((rows, patch))
    if not layers:
        raise ValueError(f"nothing in it fits this model ({type(model).__name__}); it was made for another one.")
    return layers


def _check_layers(layers: dict[str, list[tuple]], adapter: Adapter):
    if others := sorted(set(layers) - set(adapter.modules)):
        raise ValueError(
            f"it changes {len(others)} layers that are not trained here, such as {others[0]}: choose a target that "
            "has them, or another file."
        )
    if found := {_kind(patch) for parts in layers.values() for _, patch in parts} - {adapter.kind}:
        raise ValueError(f"it holds {' and '.join(sorted(found))}, at which the adapter {adapter.kind} can't begin.")
    if adapter.kind == "LoRA":
        needed = max(sum(patch.weights[1].shape[0] for _, patch in parts) for parts in layers.values())
        rank = next(iter(adapter.modules.values())).rank
        if needed > rank:
            raise ValueError(f"it needs rank {needed}, and the rank is {rank}.")


def _kind(patch) -> str:
    """The adapter that such a file is of; for what no adapter can begin at, the host's word for it."""
    if not isinstance(patch, WeightAdapterBase):
        return FULL if patch[0] == "diff" else f'"{patch[0]}" values'
    if isinstance(patch, LoRAAdapter) and any(part is not None for part in patch.weights[3:]):
        return "DoRA or another extension of LoRA"
    return next((kind for kind, of in adapter_maps.items() if type(patch) is of), patch.name)


def _take_lora(name: str, module: nn.Module, parts: list[tuple]):
    """One part after the other in the first rows; the rest stays as drawn, its product zero.

    Parts of a fused layer, such as q, k and v, each have the rows of the output that are theirs.
    """
    up, down, first = module.lora_up.weight, module.lora_down.weight, 0
    for rows, patch in parts:
        file_up, file_down = (matrix.flatten(1) for matrix in patch.weights[:2])
        rows, rank = rows or slice(None), len(file_down)
        taken = slice(first, first + rank)
        _check_shapes(name, {"up": file_up, "down": file_down}, {"up": up[rows, taken], "down": down[taken]})
        scale = 1.0 if patch.weights[2] is None else patch.weights[2] / rank
        up[:, taken] = 0
        up[rows, taken] = file_up.to(up) * (scale / (module.alpha.item() / module.rank))
        down[taken] = file_down.to(down)
        first += rank


def _take_same(name: str, module: nn.Module, parts: list[tuple]):
    theirs: dict[str, Tensor] = {}
    for rows, patch in parts:
        if rows is not None:
            raise ValueError(f"it holds {name} in parts, which only a LoRA can begin at.")
        if _kind(patch) == FULL:
            theirs["diff" if patch[1][0].ndim > 1 else "diff_b"] = patch[1][0]
        else:
            theirs |= _tensors(name, module, patch)
    ours = {key: p for key, p in module.named_parameters() if p.requires_grad}
    _check_shapes(name, theirs, ours)
    for key, tensor in theirs.items():
        ours[key].copy_(tensor)


def _tensors(name: str, module: nn.Module, patch: WeightAdapterBase) -> dict[str, Tensor]:
    """A file's tensors by the names of the module that trains them."""
    before, alpha, after = patch.weights[:2], patch.weights[2], patch.weights[3:]
    if patch.name != "lokr" and alpha != module.alpha.item():
        raise ValueError(f"its alpha is {alpha}, here it is {module.alpha.item():g} ({name}).")
    rebuilt = type(patch)(patch.loaded_keys, (*before, module.alpha.item(), *after)).to_train()
    return {key: p for key, p in rebuilt.named_parameters() if key != "alpha"}


def _check_shapes(name: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]):
    for key, tensor in theirs.items():
        if key not in ours or ours[key].shape != tensor.shape:
            here = tuple(ours[key].shape) if key in ours else "not there"
            raise ValueError(f"{name}.{key} is {tuple(tensor.shape)} in it and {here} here.")
