"""Optimisers and learning-rate schedules. All optimisers are libraries'; optional ones are imported when chosen."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ..checks import is_number
from ..files import parse_json
from .settings import Settings

BETAS = (0.9, 0.999)
CHOSEN = ("params", "lr", "weight_decay", "betas", "eps", "fused")  # of an optimiser's groups: not from a file


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether it takes gradients at another point than its result; such have two methods of their own."""
    return hasattr(optimizer, "train")


def turn(optimizer: Optimizer, mode: Literal["train", "eval"]):
    """Let the parameters of a schedule-free optimiser be where it takes gradients ("train"), or its result."""
    if is_schedule_free(optimizer):
        getattr(optimizer, mode)()


def _adamw(parameters: list[Parameter], options: dict[str, Any]) -> Optimizer:
    # On a GPU by one kernel, which takes no memory.
    return torch.optim.AdamW(parameters, **options, fused=parameters[0].is_cuda or None)


def _adamw_8bit(parameters: list[Parameter], options: dict[str, Any]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **options)


def _prodigy(parameters: list[Parameter], options: dict[str, Any]) -> Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(parameters, **options, use_bias_correction=True, safeguard_warmup=True)


def _schedule_free_adamw(parameters: list[Parameter], options: dict[str, Any]) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(parameters, **options)


def _kahan_adamw(parameters: list[Parameter], options: dict[str, Any]) -> Optimizer:
    """For bf16: what rounding takes from an update is kept and added to a later one."""
    from optimi import AdamW

    # eps is AdamW's, since clipped gradients are small beside optimi's own 1e-6; Triton would keep another state than
    # the loops on a CPU.
    return AdamW(parameters, **options, kahan_sum=True, eps=1e-8, triton=False)


MAKERS: dict[str, Callable[[list[Parameter], dict[str, Any]], Optimizer]] = {
    "AdamW": _adamw,
    "AdamW 8-bit": _adamw_8bit,
    "Prodigy": _prodigy,
    "schedule-free AdamW": _schedule_free_adamw,
    "AdamW with Kahan sums": _kahan_adamw,
}
PACKAGES = {  # to install, where it is not PyTorch's own
    "AdamW 8-bit": "bitsandbytes",
    "Prodigy": "prodigyopt",
    "schedule-free AdamW": "schedulefree",
    "AdamW with Kahan sums": "torch-optimi",
}
OPTIMIZERS = tuple(MAKERS)


def make_optimizer(parameters: Iterable[Parameter], settings: Settings) -> Optimizer:
    """The settings' optimiser. Raises ValueError if it is none of OPTIMIZERS, and ImportError, a sentence, where its
    package is missing.
    """
    name = settings.optimizer
    if name not in MAKERS:
        raise ValueError(f'There is no optimiser "{name}": choose one of {", ".join(OPTIMIZERS)}.')
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "betas": BETAS}
    try:
        return MAKERS[name](list(parameters), options)
    except ImportError as error:
        package = PACKAGES[name]
        raise ImportError(
            f'The optimiser "{name}" needs the package {package}, which is not installed: run '
            f"`pip install {package}` with ComfyUI's own Python and restart, or choose AdamW."
        ) from error


def learning_rate_factor(update: int, settings: Settings) -> float:
    """The factor of the learning rate in `update` (the first is 1): a line up over `warmup`, then half a cosine down.

    It reaches 0 after update `cosine_to`; 0 for that keeps the learning rate constant.
    """
    warmup = settings.warmup
    cosine_to = settings.cosine_to
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
    """The slots of one parameter; bitsandbytes puts its own into a dict within, and takes them without it."""
    for slot, value in held.items():
        yield from value.items() if isinstance(value, dict) else [(slot, value)]


def restore_optimizer(optimizer: Optimizer, names: list[str], tensors: dict[str, Tensor], numbers: str):
    """Put back what `optimizer_state` gave; what is CHOSEN stays as it is."""
    slots, groups = _parse(names, tensors, numbers)
    state = {names.index(name): held for name, held in slots.items() if held}
    now = optimizer.state_dict()["param_groups"]
    groups = [group | {k: v for k, v in old.items() if k not in CHOSEN} for group, old in zip(now, groups)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_optimizer_state(name: str, parameters: dict[str, Parameter], tensors: dict[str, Tensor], numbers: str):
    """Raises ValueError, half a sentence, where an optimiser of this name can't have left that (see optimizer_state).

    What it can leave is seen on stand-ins: others of its kind make a step on parameters of the same shapes.
    """
    slots, groups = _parse(list(parameters), tensors, numbers)
    examples: dict[Any, list[Optimizer]] = {}
    for parameter_name, held in slots.items():
        parameter = parameters[parameter_name]
        kind = (parameter.shape, parameter.dtype)
        if kind not in examples:
            examples[kind] = [_after_a_step(name, parameter, value) for value in (0.5, 0.0)]
        for slot, value in held.items():
            _check_slot(slot, value, examples[kind], held, what=f"the optimiser's {slot} of {parameter_name}")
    stepped = examples[kind][0].state_dict()["param_groups"]
    if len(groups) != len(stepped):
        raise ValueError(f"has {len(groups)} groups of the optimiser, not {len(stepped)}")
    for group, example in zip(groups, stepped):
        _check_group(group, example)


def _parse(names: list[str], tensors: dict[str, Tensor], numbers: str) -> tuple[dict[str, dict], list[dict]]:
    """Slots by parameter, and groups. Raises ValueError for what has no such place."""
    slots: dict[str, dict[str, Any]] = {name: {} for name in names}
    try:
        saved = parse_json(numbers)
        groups = [dict(group) for group in saved["groups"]]
        for slot, name, value in saved["state"]:
            slots[name][slot] = value
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, slot, name = key.split(".", 2)
                slots[name][slot] = value
            elif key.startswith("optimizer_group."):
                _, i, name = key.split(".")
                groups[int(i)][name] = value
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"has a state of the optimiser that is not of this run ({error!r})") from None
    return slots, groups


@torch.inference_mode(False)
def _after_a_step(name: str, parameter: Parameter, value: float) -> Optimizer:
    """On a stand-in for the parameter that is `value` everywhere: one optimiser keeps less of what is 0."""
    stand_in = Parameter(torch.full_like(parameter, value, requires_grad=False))
    stand_in.grad = torch.full_like(stand_in, 0.5)
    optimizer = make_optimizer([stand_in], Settings(optimizer=name, learning_rate=1e-3, weight_decay=0.0))
    turn(optimizer, "train")
    optimizer.step()
    turn(optimizer, "eval")
    return optimizer


def _check_slot(slot: str, value: Any, examples: list[Optimizer], held: dict[str, Any], *, what: str):
    expected = [dict(_slots(next(iter(example.state_dict()["state"].values())))) for example in examples]
    if held.keys() != expected[0].keys():
        raise ValueError(f"has other slots than the optimiser's beside {what}")
    if isinstance(value, Tensor):
        fitting = [(e.dtype, e.shape) for e in (each[slot] for each in expected) if isinstance(e, Tensor)]
        if (value.dtype, value.shape) not in fitting:
            raise ValueError(f"has {what} as {value.dtype} of shape {tuple(value.shape)}")
        if slot in ("step", "exp_avg_sq") and (value < 0).any():
            raise ValueError(f"has negative numbers in {what}")
    elif not _like(value, expected[0][slot]) or is_number(value) and value < 0:
        raise ValueError(f"has {str(value)[:40]!r} for {what}")


def _check_group(group: dict[str, Any], example: dict[str, Any]):
    for name in (group.keys() & example.keys()) - set(CHOSEN):
        value = group[name]
        other = example[name]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            right = (value.dtype, value.shape) == (other.dtype, other.shape)
        else:
            right = _like(value, other)
        if not right:
            raise ValueError(f"has {str(value)[:40]!r} for the optimiser's {name}")


def _like(value: Any, example: Any) -> bool:
    """Numbers may differ where they are finite; all else, and what is never finite, is as in the example."""
    if is_number(value) and is_number(example) and math.isfinite(example):
        return abs(value) < 2**63 and math.isfinite(value)
    return type(value) is type(example) and value == example
