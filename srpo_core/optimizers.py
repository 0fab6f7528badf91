"""Optimisers and learning-rate schedules. All optimisers are libraries'; optional ones are imported when chosen."""

import importlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

BETAS = (0.9, 0.999)
OPTIONAL = {  # module, class, the package to install, what else it is told
    "AdamW 8-bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", {}),
    "Prodigy": ("prodigyopt", "Prodigy", "prodigyopt", {"use_bias_correction": True, "safeguard_warmup": True}),
    "schedule-free AdamW": ("schedulefree", "AdamWScheduleFree", "schedulefree", {}),
    # For bf16: what rounding takes from an update is kept and added to a later one. eps is AdamW's, since clipped
    # gradients are small beside optimi's own 1e-6; Triton would keep another state than the loops on a CPU.
    "AdamW with Kahan sums": ("optimi", "AdamW", "torch-optimi", {"kahan_sum": True, "eps": 1e-8, "triton": False}),
}
OPTIMIZERS = ("AdamW", *OPTIONAL)
CHOSEN = ("params", "lr", "weight_decay", "fused")  # of an optimiser's groups: from the settings and the device


def make_optimizer(name: str, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """One of OPTIMIZERS. Raises ValueError for another, and ImportError, a sentence, where its package is missing."""
    options = {"lr": learning_rate, "weight_decay": weight_decay, "betas": BETAS}
    if name == "AdamW":
        parameters = list(parameters)
        # On a GPU by one kernel, which takes no memory.
        return torch.optim.AdamW(parameters, **options, fused=parameters[0].is_cuda or None)
    if name not in OPTIONAL:
        raise ValueError(f'There is no optimiser "{name}": choose one of {", ".join(OPTIMIZERS)}.')
    module, kind, package, more = OPTIONAL[name]
    try:
        make = getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ImportError(
            f'The optimiser "{name}" needs the package {package}, which is not installed: run '
            f"`pip install {package}` with ComfyUI's own Python and restart, or choose AdamW."
        ) from error
    return make(parameters, **options, **more)


def learning_rate_factor(update: int, warmup: int, cosine_to: int) -> float:
    """Of the learning rate in `update` (the first is 1): a line up over `warmup` updates, then half a cosine down.

    It reaches 0 after update `cosine_to`; 0 for that keeps the learning rate constant.
    """
    if update <= warmup:
        return update / (warmup + 1)
    if not cosine_to:
        return 1.0
    progress = min(1.0, (update - 1 - warmup) / max(1, cosine_to - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_state(optimizer: Optimizer, names: list[str]) -> tuple[dict[str, Tensor], str]:
    """An optimiser's tensors, as "optimizer.<slot>.<parameter>" and, of its groups, "optimizer_group.<group>.<name>",
    and all that are plain numbers, as JSON."""
    state = optimizer.state_dict()
    slots = [(slot, names[i], value) for i, held in state["state"].items() for slot, value in _slots(held)]
    tensors = {f"optimizer.{slot}.{name}": value for slot, name, value in slots if isinstance(value, Tensor)}
    numbers = [(slot, name, value) for slot, name, value in slots if not isinstance(value, Tensor)]
    groups = [{k: v for k, v in group.items() if k not in CHOSEN} for group in state["param_groups"]]
    for i, group in enumerate(groups):
        for name in [name for name, value in group.items() if isinstance(value, Tensor)]:
            tensors[f"optimizer_group.{i}.{name}"] = group.pop(name)
    owner: dict[int, str] = {}
    for key, value in tensors.items():  # a file has no tensors that share memory, as bitsandbytes' maps do
        if owner.setdefault(value.data_ptr(), key) != key and value.numel():
            tensors[key] = value.clone()
    return tensors, json.dumps({"state": numbers, "groups": groups})


def _slots(held: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of one parameter; bitsandbytes puts its own into a dict within, and takes them without it."""
    for slot, value in held.items():
        yield from value.items() if isinstance(value, dict) else [(slot, value)]


def restore_optimizer(optimizer: Optimizer, names: list[str], tensors: dict[str, Tensor], numbers: str):
    """The other way; what is CHOSEN stays as it is."""
    saved = json.loads(numbers)
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            state.setdefault(names.index(name), {})[slot] = value
        elif key.startswith("optimizer_group."):
            _, i, name = key.split(".")
            saved["groups"][int(i)][name] = value
    for slot, name, value in saved["state"]:
        state.setdefault(names.index(name), {})[slot] = value
    groups = [group | old for group, old in zip(optimizer.state_dict()["param_groups"], saved["groups"])]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
