"""What an update changes: the adapter's parameters, their optimiser and average, and what was counted."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from ..algorithm.metrics import Summary
from ..algorithm.terms import Spread
from .optimizers import is_schedule_free, learning_rate_factor, make_optimizer, optimizer_state, restore_optimizer, turn
from .settings import Settings
from .state_file import COUNTS, State, spreads_of


class TrainState:
    """The parameters of an adapter as they are trained.

    parameters: the trained tensors, by name. ema: their moving average, where there is one.
    updates: how many are finished, skipped ones included. skipped_in_a_row: the last ones of these.
    spreads: those of the rewards' answers, by the rewards' names.
    rollouts: clean latents (C, H, W) that later updates will use again.
    """

    @torch.inference_mode(False)  # ComfyUI runs nodes in it; all state of a run shall be ordinary tensors
    def __init__(self, parameters: dict[str, Parameter], settings: Settings):
        self.parameters = parameters
        self.settings = settings
        self.optimizer = make_optimizer(parameters.values(), settings)
        self.ema = {name: begin_average(p) for name, p in parameters.items()} if settings.ema else {}
        self.updates = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.spreads: dict[str, Spread] = {}
        self.rollouts: dict[str, Tensor] = {}

    @property
    def turns(self) -> bool:
        """Whether the optimiser is schedule-free, so that `turn` changes parameters."""
        return is_schedule_free(self.optimizer)

    def turn(self, mode: Literal["train", "eval"]):
        """See `optimizers.turn`."""
        turn(self.optimizer, mode)

    def step(self):
        """One step of the optimiser, at the learning rate of the next update."""
        factor = learning_rate_factor(self.updates + 1, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate
        self.optimizer.step()

    def average(self):
        """Move the moving average towards the parameters."""
        for name, average in self.ema.items():
            average.lerp_(self.parameters[name].detach().to(average), 1 - self.settings.ema)

    def remember(self, summaries: Iterable[Summary]):
        """Add to the spreads what the rewards have answered."""
        for answer in (answer for summary in summaries for answer in summary.answers):
            answer.add_to(self.spreads.setdefault(answer.name, Spread()))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are their moving average, if there is one: for samples and files."""
        trained = {name: self.parameters[name].detach().clone() for name in self.ema}
        self._set_parameters(self.ema)
        try:
            yield
        finally:
            self._set_parameters(trained)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _set_parameters(self, values: dict[str, Tensor]):
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def contents(self) -> State:
        """All that an update changes, as a state file has it; the tensors are these themselves, not copies."""
        tensors = {f"adapter.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": average for name, average in self.ema.items()}
        tensors |= {f"rollout.{name}": latent.contiguous() for name, latent in self.rollouts.items()}
        header = {name: str(getattr(self, name)) for name in COUNTS}
        slots, header["numbers"] = optimizer_state(self.optimizer, list(self.parameters))
        header["spreads"] = json.dumps({name: asdict(spread) for name, spread in self.spreads.items()})
        return tensors | slots, header

    def put_back(self, state: State):
        """Let the state be what `contents` gave, or a file holds."""
        tensors, header = state
        self._set_parameters(named("adapter", tensors))
        for name in self.ema:
            parameter = self.parameters[name]
            average = tensors.get(f"ema.{name}")
            self.ema[name] = begin_average(parameter) if average is None else average.to(parameter.device)
        self.rollouts = named("rollout", tensors)
        self.optimizer.state.clear()  # to have its memory back, which may be what was missing
        restore_optimizer(self.optimizer, list(self.parameters), tensors, header["numbers"])
        self.spreads = spreads_of(header)
        for name in COUNTS:
            setattr(self, name, int(header[name]))

    def not_finite(self) -> str:
        """What of the state is not finite, as the end of a sentence; empty where all is."""
        tensors, header = self.contents()
        if name := _first_not_finite(tensors):
            return f"numbers that are not finite in {name}"
        for name, spread in self.spreads.items():
            if not all(map(math.isfinite, asdict(spread).values())):
                return f'numbers that are not finite in the spread of the reward "{name}"'
        return "a number that is none in the optimiser" if "NaN" in header["numbers"] else ""


def _first_not_finite(tensors: dict[str, Tensor]) -> str:
    """The name of a tensor with a number that is not finite; empty where all are."""
    flags: dict[torch.device, dict[str, Tensor]] = {}  # asked once for each device, which waits for it
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            flags.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    for asked in flags.values():
        finite = torch.stack(list(asked.values())).tolist()
        if not all(finite):
            return list(asked)[finite.index(False)]
    return ""


def named(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a state's tensors that are of one kind, by their names without it."""
    return {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}


def averaged_dtype(parameter: Tensor) -> torch.dtype:
    """fp32 at least: what an average gains in one update is lost in the rounding of bf16."""
    return torch.promote_types(parameter.dtype, torch.float32)


def begin_average(parameter: Parameter) -> Tensor:
    """A copy, in the type of averages."""
    return parameter.detach().to(averaged_dtype(parameter), copy=True)
