"""Optimisers and learning-rate schedules. All optimisers are libraries'; optional ones are imported when chosen."""

import importlib
import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

BETAS = (0.9, 0.999)
OPTIONAL = {  # module, class, the package to install, what else it is told
    "AdamW 8-bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", {}),
    "Prodigy": ("prodigyopt", "Prodigy", "prodigyopt", {"use_bias_correction": True, "safeguard_warmup": True}),
    "schedule-free AdamW": ("schedulefree", "AdamWScheduleFree", "schedulefree", {}),
}
OPTIMIZERS = ("AdamW", *OPTIONAL)


def make_optimizer(name: str, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """One of OPTIMIZERS. Raises ValueError for another, and ImportError, a sentence, where its package is missing."""
    options = {"lr": learning_rate, "weight_decay": weight_decay, "betas": BETAS}
    if name == "AdamW":
        return torch.optim.AdamW(parameters, **options)
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
