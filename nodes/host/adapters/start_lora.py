"""A run that begins at a LoRA file: what the host's loader would add to the model, put into a fresh adapter."""

import itertools
import re
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase, adapter_maps
from torch import Tensor, nn

from ....srpo_core.files import check_file
from ....srpo_core.language import say
from .adapter import Adapter
from .settings import FULL

# Of text encoders: lora_te1_text_model..., text_encoders.t5xxl..., text_encoder_2.text_model..., clip_l.transformer...
TEXT_ENCODER = re.compile(r"^(lora_(prior_)?)?(te\d*|text_encoders?(_\d)?|clip_[lgh]|t5xxl|cond_stage_model)[._]")
ALONE = ("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "set_weight")  # what the host takes by itself
LARGEST = 1e4  # of the numbers in a file, and of alpha / rank: real ones are below 100


@torch.inference_mode(False)
@torch.no_grad()
def start_at(adapter: Adapter, model: nn.Module, file: Path) -> str:
    """Let `adapter`, fresh on `model`, begin as the file, of any layout that the host's loader takes.

    A LoRA takes one of any smaller rank; other kinds take tensors of their own names and shapes. Returns a sentence
    about what is left out because it is of the text encoders, or nothing.
    Raises ValueError for a file of another model or kind, for layers that are not trained, for too small a rank, and
    for numbers that no training gives; the adapter is then still fresh.
    """
    try:
        content = _read(file)
        names = comfy.lora.model_lora_keys_unet(model, {})
        patches = _patches(content, names)
        left_out = sorted(content.keys() - _taken(content, patches, names))
        _check_left_out(left_out, patches, model)
        layers = _by_layer(patches)
        _check_layers(layers, adapter)
        began = {name: _begin(name, adapter, parts) for name, parts in layers.items()}
        for name, values in began.items():
            _check_computed(name, values)
    except ValueError as error:
        raise ValueError(f'The run can\'t begin at "{file.name}": {error}') from None
    for name, values in began.items():
        ours = dict(adapter.modules[name].named_parameters())
        for key, value in values.items():
            ours[key].copy_(value)
    return _about_left_out(file, left_out)


def _read(file: Path) -> dict[str, Tensor]:
    """Its tensors by the host's names, in a type that can be computed in. Raises ValueError for what is broken."""
    check_file(file)
    try:
        content = comfy.utils.load_torch_file(str(file), safe_load=True)
    except Exception as error:  # the libraries behind it have a dozen kinds for broken files
        raise ValueError(f"it is damaged or no LoRA ({type(error).__name__}: {error}). Take another copy.") from error
    if wrong := [key for key, value in content.items() if not torch.is_tensor(value)]:
        raise ValueError(f"{wrong[0]} in it is no tensor.")
    for key, tensor in content.items():
        _check_numbers(key, tensor)
    content = comfy.lora_convert.convert_lora(content)
    return {key: tensor.float() if tensor.dtype.itemsize == 1 else tensor for key, tensor in content.items()}


def _check_numbers(key: str, tensor: Tensor):
    if 0 in tensor.shape:
        raise ValueError(f"{key} in it is empty, of the shape {tuple(tensor.shape)}: the file is broken.")
    if tensor.ndim > 1 and not tensor.is_floating_point():
        raise ValueError(f"{key} in it holds {tensor.dtype}, and a LoRA is of floating-point numbers.")
    worst = _worst(tensor)
    if not worst <= LARGEST:
        raise ValueError(
            f"{key} in it holds {worst:g}, which no training gives: the file is broken. Take another one, such as an "
            "earlier save."
        )


def _check_alpha(key: str, alpha: Tensor):
    if alpha.numel() != 1:
        raise ValueError(f"{key} in it has the shape {tuple(alpha.shape)}, and an alpha is one number.")
    if not alpha.item() > 0:
        raise ValueError(f"{key} in it is {alpha.item():g}, and an alpha is above 0.")


def _worst(tensor: Tensor) -> float:
    """The largest of its values without their signs; nan if one is."""
    return tensor.float().abs().max().item()


def _patches(content: dict[str, Tensor], names: dict) -> dict:
    """What the host's loader makes of it."""
    for key in content:
        name, _, last = key.rpartition(".")
        if last == "alpha" and f"{name}.oft_blocks" not in content:  # of OFT it limits the rotation, 0 being none
            _check_alpha(key, content[key])
    try:
        return comfy.lora.load_lora(content, names, log_missing=False)
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing in it, which belongs to another of its tensors.") from None


def _taken(content: dict[str, Tensor], patches: dict, names: dict) -> set[str]:
    """The keys of the file that the host's patches are made of."""
    taken = {f"{name}.{kind}" for name in names for kind in ALONE} & content.keys()
    return taken.union(*(patch.loaded_keys for patch in patches.values() if isinstance(patch, WeightAdapterBase)))


def _check_left_out(keys: list[str], patches: dict, model: nn.Module):
    others = [key for key in keys if not TEXT_ENCODER.search(key)]
    if not patches and not others:
        raise ValueError("it changes text encoders alone, which are not trained here.")
    if not patches:
        raise ValueError(f"nothing in it fits this model ({type(model).__name__}); it was made for another one.")
    if others:
        raise ValueError(
            f"{len(others)} of its tensors belong to nothing in this model ({type(model).__name__}), such as "
            f"{others[0]}: it was made for another model, or by a trainer whose files ComfyUI does not read in full."
        )


def _about_left_out(file: Path, left_out: list[str]) -> str:
    if not left_out:
        return ""
    return say(
        "{file} also changes text encoders ({count} tensors, such as {first}), which are not trained here, so the "
        "run's LoRA has nothing of that. Load the file on the CLIP alone beside it.",
        file=file.name,
        count=len(left_out),
        first=left_out[0],
    )


def _by_layer(patches: dict) -> dict[str, list[tuple]]:
    """For each layer what the file adds to it: (rows of its output, or None for all; the host's patch)."""
    layers: dict[str, list[tuple]] = {}
    for place, patch in patches.items():
        key, *slices = (place,) if isinstance(place, str) else place
        if len(slices) > 1 or (slices and slices[0][0] != 0):
            raise ValueError(f"it holds {key} in another order than the model, which only a loader can undo.")
        rows = slice(slices[0][1], sum(slices[0][1:])) if slices else None
        layers.setdefault(key.rsplit(".", 1)[0], []).append((rows, patch))
    return layers


def _check_layers(layers: dict[str, list[tuple]], adapter: Adapter):
    if others := sorted(set(layers) - set(adapter.modules)):
        raise ValueError(
            f"it changes {len(others)} layers that are not trained here, such as {others[0]}: choose a target that "
            "has them, or another file."
        )
    kind = adapter.settings.kind
    if found := {_adapter_kind(patch) for parts in layers.values() for _, patch in parts} - {kind}:
        raise ValueError(f"it holds {' and '.join(sorted(found))}, at which the adapter {kind} can't begin.")
    if kind == "LoRA":
        for name, parts in layers.items():
            _check_right_way_round(name, adapter.modules[name], parts)
        needed = max(sum(patch.weights[1].shape[0] for _, patch in parts) for parts in layers.values())
        rank = next(iter(adapter.modules.values())).rank
        if needed > rank:
            raise ValueError(f"it needs rank {needed}, and the rank is {rank}.")


def _adapter_kind(patch: WeightAdapterBase) -> str:
    """The adapter that such a file is of; for what no adapter can begin at, the host's word for it."""
    if not isinstance(patch, WeightAdapterBase):
        return FULL if patch[0] == "diff" else f'"{patch[0]}" values'
    if isinstance(patch, LoRAAdapter) and any(part is not None for part in patch.weights[3:]):
        return "DoRA or another extension of LoRA"
    return next((kind for kind, of in adapter_maps.items() if type(patch) is of), patch.name)


def _check_right_way_round(name: str, module: nn.Module, parts: list[tuple]):
    """Raises ValueError where up (out, rank) and down (rank, in) are turned, exchanged, or of two ranks."""
    for rows, patch in parts:
        if min(matrix.ndim for matrix in patch.weights[:2]) < 2:
            raise ValueError(f"what it holds of {name} is no pair of matrices.")
        up, down = (tuple(matrix.flatten(1).shape) for matrix in patch.weights[:2])
        height = len(module.lora_up.weight[rows or slice(None)])
        width = module.lora_down.weight.shape[1]
        turned = itertools.product((up, up[::-1]), (down, down[::-1]))
        right = (height, width)
        if not _fit(up, down, right) and any(_fit(a, b, right) or _fit(b, a, right) for a, b in turned):
            raise ValueError(
                f"{name}.lora_up is {up} and lora_down {down} in it, which is inside out: this layer takes "
                f"({height}, rank) and (rank, {width})."
            )
        if up[1] != down[0]:
            raise ValueError(f"{name}.lora_up is {up} and lora_down {down} in it, which are of two ranks.")


def _fit(up: tuple[int, int], down: tuple[int, int], layer: tuple[int, int]) -> bool:
    return up[1] == down[0] and (up[0], down[1]) == layer


def _begin(name: str, adapter: Adapter, parts: list[tuple]) -> dict[str, Tensor]:
    """What the parameters of this layer begin as, by their names in it."""
    take = _take_lora if adapter.settings.kind == "LoRA" else _take_same
    return take(name, adapter.modules[name], parts)


def _check_computed(name: str, values: dict[str, Tensor]):
    for key, value in values.items():
        worst = _worst(value)
        if not worst <= LARGEST:
            raise ValueError(f"{name}.{key} would begin at {worst:g}, by its alpha and rank: the file is broken.")


def _take_lora(name: str, module: nn.Module, parts: list[tuple]) -> dict[str, Tensor]:
    """One part after the other in the first rows; the rest stays as drawn, its product zero.

    Parts of a fused layer, such as q, k and v, each have the rows of the output that are theirs.
    """
    up = module.lora_up.weight.clone()
    down = module.lora_down.weight.clone()
    first = 0
    for rows, patch in parts:
        file_up, file_down = (matrix.flatten(1) for matrix in patch.weights[:2])
        rows = rows or slice(None)
        rank = len(file_down)
        taken = slice(first, first + rank)
        _check_shapes(name, {"up": file_up, "down": file_down}, {"up": up[rows, taken], "down": down[taken]})
        scale = 1.0 if patch.weights[2] is None else patch.weights[2] / rank
        if scale > LARGEST:
            raise ValueError(f"its alpha is {patch.weights[2]:g} at rank {rank} ({name}): the file is broken.")
        up[:, taken] = 0
        up[rows, taken] = file_up.to(up) * (scale / (module.alpha.item() / module.rank))
        down[taken] = file_down.to(down)
        first += rank
    return {"lora_up.weight": up, "lora_down.weight": down}


def _take_same(name: str, module: nn.Module, parts: list[tuple]) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    for rows, patch in parts:
        if rows is not None:
            raise ValueError(f"it holds {name} in parts, which only a LoRA can begin at.")
        if _adapter_kind(patch) == FULL:
            theirs["diff" if patch[1][0].ndim > 1 else "diff_b"] = patch[1][0]
        else:
            theirs |= _tensors(name, module, patch)
    _check_shapes(name, theirs, {key: p for key, p in module.named_parameters() if p.requires_grad})
    return theirs


def _tensors(name: str, module: nn.Module, patch: WeightAdapterBase) -> dict[str, Tensor]:
    """A file's tensors by the names of the module that trains them."""
    before = patch.weights[:2]
    alpha = patch.weights[2]
    after = patch.weights[3:]
    if patch.name != "lokr" and alpha != module.alpha.item():
        raise ValueError(f"its alpha is {alpha}, here it is {module.alpha.item():g} ({name}).")
    rebuilt = type(patch)(patch.loaded_keys, (*before, module.alpha.item(), *after)).to_train()
    return {key: p for key, p in rebuilt.named_parameters() if key != "alpha"}


def _check_shapes(name: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]):
    for key, tensor in theirs.items():
        if key not in ours or ours[key].shape != tensor.shape:
            here = tuple(ours[key].shape) if key in ours else "not there"
            raise ValueError(f"{name}.{key} is {tuple(tensor.shape)} in it and {here} here.")
