"""What the training scripts of the toy models share: the optimiser, its learning rate, and saving."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from ..files import write_whole

log = logging.getLogger(__name__)


def orthogonal(matrices: Tensor, steps: int = 5):
    """The nearest orthogonal matrices, roughly: (N, R, C) -> the same with all singular values near 1.

    Newton-Schulz iteration with the quintic coefficients of Muon (Jordan et al., 2024).
    """
    x = matrices.bfloat16() if bf16_is_quick() else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for the matrices (and convolutions, flattened): few steps go a long way.

    Parameters of equal shape are updated together in one batch. `lr` is the root-mean-square size that one update
    would have, relative to a matrix whose singular values are all 1.
    """

    def __init__(self, params: list[Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):  # type: ignore[override]  # no closure: the loss is not asked for again
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(p)
            for shape, params in by_shape.items():
                self._update(group, shape, params)

    def _update(self, group: dict[str, Any], shape: tuple[int, int], params: list[Parameter]):
        stack = []
        for p in params:
            state = self.state[p]
            velocity = state.setdefault("velocity", torch.zeros_like(p))
            gradient = p.grad
            assert gradient is not None, "only those with a gradient come here"
            velocity.lerp_(gradient, 1 - group["momentum"])
            stack.append(torch.lerp(gradient, velocity, group["momentum"]).reshape(shape))
        updates = orthogonal(torch.stack(stack)) * max(1, shape[0] / shape[1]) ** 0.5
        for p, update in zip(params, updates):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.reshape(p.shape), alpha=-group["lr"])


class MuonWithAdam:
    """Two optimisers, Muon for hidden matrices and Adam for the rest, at rates that warm up and then fall linearly.

    model: its parameters that require gradients are trained.
    adam_only: parts of "/" + parameter name; those go to Adam although matrices (embeddings, first and last layers).
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        muon_lr: float = 0.02,
        adam_lr: float = 2e-3,
        adam_only: Sequence[str] = (),
        weight_decay: float = 0.0,
        warm_up: int = 20,
        clip: float = 1.0,
    ):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim >= 2 and not any(part in "/" + name for part in adam_only)]
        chosen = {id(p) for p in matrices}
        self.params = [p for _, p in named]
        rest = [p for p in self.params if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = (
            [Muon(matrices, muon_lr, weight_decay=weight_decay)] if matrices else []
        )
        self.optimisers += [torch.optim.Adam(rest, adam_lr, betas=(0.9, 0.98))] if rest else []
        self.clip = clip
        ramp = lambda i: min((i + 1) / warm_up, max((steps - i) / steps, 0.0))  # noqa: E731
        self.rates = [torch.optim.lr_scheduler.LambdaLR(o, ramp) for o in self.optimisers]

    def update(self, loss: Tensor):
        """One step down the gradient of `loss` (scalar)."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        for rate in self.rates:
            rate.step()
        for p in self.params:
            p.grad = None


class Progress:
    """Logs the running mean of a few numbers every `every` steps."""

    def __init__(self, name: str, steps: int, every: int = 50):
        self.name = name
        self.steps = steps
        self.every = every
        self.start = time.time()
        self.sums: dict[str, list[float]] = {}

    def __call__(self, step: int, **numbers: Tensor | float):
        for key, value in numbers.items():
            self.sums.setdefault(key, []).append(float(value.detach() if isinstance(value, Tensor) else value))
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            means = " ".join(f"{key} {np.mean(values):.4f}" for key, values in self.sums.items())
            log.info("%s %d/%d %s (%.0f s)", self.name, step + 1, self.steps, means, time.time() - self.start)
            self.sums.clear()


def seeded(seed: int):
    """A numpy generator for the pictures; torch's own generator is seeded beside it."""
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def bf16_is_quick():
    """Whether this CPU may multiply in bf16: one of AVX2 takes 7 times as long as in fp32, 9 for a convolution."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def low_precision():
    """bf16 autocast on the CPU, where that is quick: twice as fast with avx512_bf16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_quick())


def scaled(steps: int, scale: float):
    """`steps` times `scale`, at least 2."""
    return max(2, math.ceil(steps * scale))


def batch_of(batch: int, scale: float):
    """The batch of a build at this scale: smaller below 0.01, where it is only seen to run."""
    return min(batch, scaled(100 * batch, scale))


def _stored(value: Tensor):
    value = value.detach().contiguous()
    return value.bfloat16() if value.is_floating_point() else value


def save_weights(model: nn.Module, path: Path):
    """The state of `model` as bf16 safetensors at `path`, whole or not at all."""
    state = {name: _stored(value) for name, value in model.state_dict().items()}
    write_whole(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))
    log.info("saved %s, %.2f MB", path, path.stat().st_size / 1e6)
