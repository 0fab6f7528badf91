"""Whether a gradient is right: held against how far the model's own samples differ.

A wrong gradient trains on without a word, and pictures alone don't tell it from a bad learning rate. So, before a run
trains with a model, its velocity is sampled a step ahead and a step back along one random direction of the trained
parameters; the way back must say the same slope. On the host's FLUX, 8x8 latents, in each form that a base is stored or
computed in, with every kind of adapter, at its start and later, the ratio of both is 0.91 to 1.09, and where layers
quantise their input, whose gradient is the straight-through one, within the tolerance; in fp32 it is 0.96 to 1.02.
More places, as of a real picture, average more of the rounding out.

It is for faults of the whole: a model that the way back sees otherwise than the forward did. One block of many, whose
gradient is wrong but not missing, may change the slope by less than the tolerance.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .protocols import FlowModel

TOLERANCE = 0.15  # of the ratio's distance to 1
EXACT = 0.06  # the same, where nothing is rounded further than in fp32
# How much of the velocity the first step changes; towards that change the slopes are taken, over shorter steps. So the
# rounding of bf16, and of quantised inputs, hardly counts: it goes any way. Nor does the curvature: over the first step
# the toy FLUX's slope is 1.7 times what it is at its middle.
CHANGE = 0.09
CLOSE_TO_IT = (0.03, 0.2)
SHORTER = (0.02, 0.006, 0.05)  # changes; those after the first are second opinions
FIRST_STEP = 1e-2
TRIES = 8  # to find the step with that change
MOVED = 2**16  # elements of one tensor that are moved: of FLUX's LoRA of rank 16 nearly all, of whole layers a part
SILENT = 0.05  # of the change, that tensors without a gradient may make alone


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How fast the velocity changes along the direction: as sampled, and as the gradient has it.

    silent: names of the tensors whose gradient is missing or zero. their_change: what these make, of the whole change;
    about 0 where they really have none. tolerance: of the ratio's distance to 1.
    """

    sampled: float
    gradient: float
    tolerance: float = TOLERANCE
    silent: Sequence[str] = ()
    their_change: float = 0.0

    @property
    def ratio(self) -> float:
        return self.gradient / self.sampled if self.sampled else math.nan

    @property
    def is_right(self) -> bool:
        return abs(self.ratio - 1) <= self.tolerance


def check_once(checked: set, flow: FlowModel, cond: Any, at: Callable[[], tuple[Tensor, Tensor]]):
    """check_gradient, but for a signature of the flow model that is in `checked`; it is added once that could tell.

    at: gives x (1, C, H, W) and sigma (1,), where it is checked.
    """
    if flow.signature(cond) not in checked and check_gradient(flow, *at(), cond):
        checked.add(flow.signature(cond))  # as it is by now: what failed to compile is not compiled any more


def check_gradient(flow: FlowModel, x: Tensor, sigma: Tensor, cond: Any) -> bool:
    """Raises RuntimeError, a sentence, if the gradient of the velocity is wrong at x (B, C, H, W), sigma (B,), cond.

    Changes nothing, random states included. Returns whether it could tell: of a model whose samples are not finite it
    says nothing, and a run skips those.
    """
    slope = measure(flow, x, sigma, cond)
    if slope and (fault := describe_fault(slope, len(flow.parameters))):
        raise RuntimeError(
            f"The gradient of this model is wrong, so the run stopped before it would train on it. {fault} "
            "Nothing was changed."
        )
    return slope is not None


def describe_fault(slope: Slope, tensors: int) -> str | None:
    """What is wrong, and what to do; None where nothing is. tensors: how many are trained."""
    leave_out = (
        "Something that the model or its conditioning carries (a patch, a hook, a ControlNet, an attention of its own) "
        "is lost on the way back: leave such things out one by one, until it trains, and report what it was."
    )
    if not slope.sampled:
        return (
            "Moving the adapter's parameters changes nothing that the model samples, so the adapter is not at work in "
            "it. Something else took its place: leave out what stands between SRPO Trainer and here."
        )
    measured = (
        f"Along one random direction of the adapter its samples change at the rate {slope.sampled:.4g}, and by the "
        f"gradient it is {slope.gradient:.4g}, {slope.ratio:.2f} times that"
    )
    if not math.isfinite(slope.gradient):
        return f"{measured}. A model that computes in fp16 may overflow: let it compute in bf16 or fp32. {leave_out}"
    if not slope.is_right:
        return f"{measured}, where {1 - slope.tolerance:.2f} to {1 + slope.tolerance:.2f} would do. {leave_out}"
    if slope.their_change > SILENT:
        return (
            f"{len(slope.silent)} of {tensors} trained tensors get no gradient, such as {slope.silent[0]}, but samples "
            f"change by {slope.their_change:.0%} of all when these alone are moved. {leave_out}"
        )
    return None


@torch.inference_mode(False)
def measure(flow: FlowModel, x: Tensor, sigma: Tensor, cond: Any) -> Slope | None:
    """The slopes along one random direction; None where samples are not finite."""
    devices = {p.device for p in flow.parameters.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), unchanged(flow.parameters):
        direction = random_parts(flow.parameters)
        sampler = BothWays(flow, x, sigma, cond)
        step, ahead, back = find_step(partial(sampler.sample, direction))
        difference = ahead - back
        size = difference.norm().item()
        if not math.isfinite(size):
            return None
        if not size:
            return Slope(sampled=0.0, gradient=0.0)
        towards = difference / size
        flow.velocity(x, sigma, cond).pull(towards.to(x))
        steps = (step * change * (ahead + back).norm().item() / size for change in SHORTER)
        slope = best_of(sampler.slope(direction, short, towards) for short in steps)
        silent = [part for part in direction if part.is_silent]
        if not silent:
            return slope
        alone, other = sampler.sample(silent, step)
        change = (alone - other).norm().item() / size
        return replace(slope, silent=[part.name for part in silent], their_change=change)


@dataclass(frozen=True)
class BothWays:
    """A flow model's velocity at one place, with parts of its parameters a step ahead and a step back."""

    flow: FlowModel
    x: Tensor
    sigma: Tensor
    cond: Any

    def sample(self, parts: Sequence["Part"], step: float) -> tuple[Tensor, Tensor]:
        """Ahead and back, float64 on the CPU."""
        return self._moved(parts, step), self._moved(parts, -step)

    def _moved(self, parts: Sequence["Part"], step: float) -> Tensor:
        with moved(parts, step):
            return self.flow.sampled_velocity(self.x, self.sigma, self.cond).cpu().double()

    def slope(self, parts: Sequence["Part"], step: float, towards: Tensor) -> Slope:
        """Over this step, of the velocity's part along `towards`, whose gradient the parameters have."""
        ahead, back = self.sample(parts, step)
        sampled = ((ahead - back) * towards).sum().item() / 2
        gradient = sum(part.slope(step) for part in parts) / step
        return Slope(sampled=sampled / step, gradient=gradient, tolerance=EXACT if self.flow.exact else TOLERANCE)


def best_of(slopes: Iterable[Slope]) -> Slope:
    """The first one that is right; else the one whose ratio is closest to 1, of several as close the first."""
    found = []
    for slope in slopes:
        found.append(slope)
        if slope.is_right:
            break
    return min(found, key=lambda slope: abs(slope.ratio - 1))


def find_step(samples: Callable[[float], tuple[Tensor, Tensor]]) -> tuple[float, Tensor, Tensor]:
    """A step, and the samples (ahead, back) that it gives: of those tried, the one that comes closest to CHANGE."""
    step = FIRST_STEP
    found = []
    for _ in range(TRIES):
        ahead, back = samples(step)
        change = ((ahead - back).norm() / (ahead + back).norm()).item()
        found.append((away(change), step, ahead, back))
        if CLOSE_TO_IT[0] <= change <= CLOSE_TO_IT[1]:
            break
        factor = CHANGE / change if change else math.inf
        step *= min(max(factor, 1e-2), 1e2) if math.isfinite(change) else 1e-2
    return min(found, key=lambda tried: tried[0])[1:]


def away(change: float) -> float:
    return abs(math.log(change / CHANGE)) if change and math.isfinite(change) else math.inf


@contextmanager
def moved(parts: Sequence["Part"], step: float) -> Iterator[None]:
    """Inside, these parts are moved; they are put back."""
    try:
        for part in parts:
            part.put(part.at(step))
        yield
    finally:
        for part in parts:
            part.put(part.before)


def random_parts(parameters: Mapping[str, Parameter]) -> list["Part"]:
    """A part of each parameter, each in a random direction; always the same."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, parameter in parameters.items():
        count = min(parameter.numel(), MOVED)
        first = int(torch.randint(parameter.numel() - count + 1, (), generator=generator))
        parts.append(Part(name, parameter, first, torch.randn(count, generator=generator)))
    return parts


class Part:
    """Elements of a parameter, from `first` on, and the direction that they are moved in, (N,) on the CPU."""

    def __init__(self, name: str, parameter: Parameter, first: int, direction: Tensor):
        self.name = name
        self.parameter = parameter
        self.first = first
        self.direction = direction
        self.before = self._of(parameter.data).to("cpu", copy=True)

    @property
    def is_silent(self) -> bool:
        """Whether the parameter's gradient is missing, or zero."""
        return self.parameter.grad is None or not self.parameter.grad.any()

    def at(self, step: float) -> Tensor:
        """Their values there, in the parameter's type: bf16 has few."""
        wide = torch.promote_types(self.before.dtype, torch.float32)
        return (self.before.to(wide) + step * self.direction.to(wide)).to(self.before.dtype)

    def put(self, values: Tensor):
        # Into the data: what autograd saved of a parameter for another way back is right again once it is put back.
        self._of(self.parameter.data).copy_(values)

    def slope(self, step: float) -> float:
        """What they add to the slope by the gradient: its product with half of the way that was really gone."""
        if self.parameter.grad is None:
            return 0.0
        gradient = self._of(self.parameter.grad.contiguous()).cpu().double()
        return ((self.at(step).double() - self.at(-step).double()) / 2 * gradient).sum().item()

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor.view(-1)[self.first : self.first + len(self.direction)]


@contextmanager
def unchanged(parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Inside, the parameters have no gradients; on leaving, those that they had."""
    before = {parameter: parameter.grad for parameter in parameters.values()}
    try:
        for parameter in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient
