"""The gradient held against differences of samples: faults are caught, right gradients pass, and nothing changes."""

import json
import math

import pytest
import torch
from tiny_run import SETTINGS, TWO, go, same, state, world
from tiny_world import SHAPE, TinyFlow, numbers
from torch.nn import Parameter

from srpo_core.algorithm import gradient_check as derivative
from srpo_core.algorithm.gradient_check import TOLERANCE, check_gradient, check_once, measure
from srpo_core.algorithm.protocols import Pullback
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.training import Training
from srpo_core.toy.world import toy_world

X = numbers(5, 1, *SHAPE, dtype=torch.float32)
SIGMA = torch.tensor([0.8])
COND = torch.tensor([0.3])


def at():
    return X, SIGMA


class LoraFlow(TinyFlow):
    """velocity = tanh((base + up down) x) for each of three layers, one after the other, up beginning at zero."""

    def __init__(self, dtype=torch.float32, compute=torch.float32, begun=False):
        width = 16
        self.compute = compute
        self.base = [numbers(10 + i, width, width) / width**0.5 for i in range(3)]
        self.parameters = {}
        for i in range(3):
            self.parameters[f"{i}.down"] = Parameter(numbers(20 + i, 4, width, dtype=dtype) / width**0.5)
            self.parameters[f"{i}.up"] = Parameter(begun * numbers(30 + i, width, 4, dtype=dtype) / 10)

    def forward(self, x, sigma, cond, frozen=False):
        hidden = x.reshape(len(x), 2, 16).to(self.compute) + cond.to(self.compute)
        for i, base in enumerate(self.base):
            down, up = (self.parameters[f"{i}.{part}"].to(self.compute) for part in ("down", "up"))
            hidden = hidden + torch.tanh(self.layer(hidden, i, base.to(self.compute), up, down))
        return hidden.float().view_as(x)

    def layer(self, hidden, i, base, up, down):
        return hidden @ (base + up @ down).T


def check(flow):
    check_gradient(flow, X, SIGMA, COND)


RIGHT = {
    "tiny": lambda: TinyFlow(torch.float32),
    "fp64": lambda: TinyFlow(torch.float64),
    **{
        f"LoRA {names}": lambda options=options: LoraFlow(**options)
        for names, options in {
            "at its start": {},
            "begun": {"begun": True},
            "in bf16": {"compute": torch.bfloat16},
            "in fp16": {"compute": torch.float16},
            "of bf16": {"dtype": torch.bfloat16, "compute": torch.bfloat16, "begun": True},
        }.items()
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_passes_and_nothing_changes(name):
    flow = RIGHT[name]()
    for i, parameter in enumerate(flow.parameters.values()):
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    before = {name: (p.detach().clone(), p.grad, p._version) for name, p in flow.parameters.items()}
    kept = {name: p.grad.clone() for name, p in flow.parameters.items() if p.grad is not None}
    random = torch.get_rng_state()
    check(flow)
    slope = measure(flow, X, SIGMA, COND)
    assert abs(slope.ratio - 1) < (0.1 if "16" in name else 0.02) and slope.sampled > 0
    for name, (value, gradient, version) in before.items():
        parameter = flow.parameters[name]
        assert torch.equal(parameter, value) and parameter.grad is gradient and parameter._version == version
        assert gradient is None or torch.equal(gradient, kept[name])
    assert torch.equal(torch.get_rng_state(), random)


def test_parameters_that_are_large_are_moved_in_part(monkeypatch):
    monkeypatch.setattr(derivative, "MOVED", 7)
    assert abs(measure(LoraFlow(begun=True), X, SIGMA, COND).ratio - 1) < 0.02


def test_a_way_back_that_waits_is_still_right():
    """Node by node, one prompt's velocity may wait while the next one's model is checked."""
    flow = LoraFlow(begun=True)
    other = LoraFlow(begun=True)
    waiting = flow.velocity(X, SIGMA, COND)
    check(flow)
    waiting.pull(X)
    other.velocity(X, SIGMA, COND).pull(X)
    assert all(torch.equal(p.grad, other.parameters[name].grad) for name, p in flow.parameters.items())


def pulled(change):
    """The flow's way back, and what `change` makes of it afterwards."""

    class Faulty(LoraFlow):
        def velocity(self, x, sigma, cond):
            done = super().velocity(x, sigma, cond)

            def pull(gradient):
                done.pull(gradient)
                change(self.parameters)

            return Pullback(done.value, pull)

    return Faulty


def scale_all(factor):
    def scale(parameters):
        for parameter in parameters.values():
            parameter.grad.mul_(factor)

    return pulled(scale)


def without(chosen, put):
    def leave_out(parameters):
        for name, parameter in parameters.items():
            if chosen in name:
                parameter.grad = put(parameter)

    return pulled(leave_out)


class Detached(LoraFlow):
    """What goes into the last layer is a constant, also what goes past it."""

    def forward(self, x, sigma, cond, frozen=False):
        self.base, last = self.base[:2], self.base[2:]
        try:
            hidden = super().forward(x, sigma, cond).detach().reshape(len(x), 2, 16).to(self.compute)
        finally:
            self.base = self.base + last
        weights = (self.parameters[f"2.{part}"].to(self.compute) for part in ("up", "down"))
        return (hidden + torch.tanh(self.layer(hidden, 2, last[0].to(self.compute), *weights))).view_as(x)


class Constant(LoraFlow):
    """Where a gradient is wanted the last layer's adapter is a constant."""

    def layer(self, hidden, i, base, up, down):
        detached = i == 2 and torch.is_grad_enabled()
        return super().layer(hidden, i, base, *(t.detach() if detached else t for t in (up, down)))


class Unhooked(LoraFlow):
    """As a LoRA hook was: in the weights for the forward, and gone when the way back reads them."""

    def forward(self, x, sigma, cond, frozen=False):
        return super().forward(x, sigma, cond)

    def layer(self, hidden, i, base, up, down):
        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, hidden, weight):
                ctx.save_for_backward(hidden, weight)
                return hidden @ (weight + 0.6 * numbers(50 + i, 16, 16)).float().T

            @staticmethod
            def backward(ctx, gradient):
                hidden, weight = ctx.saved_tensors
                return gradient @ weight, gradient.flatten(0, 1).T @ hidden.flatten(0, 1)

        return Product.apply(hidden, base + up @ down)


class Deaf(LoraFlow):
    """Its sampler does not hear the adapter."""

    def sampled_velocity(self, x, sigma, cond):
        return x


FAULTS = {
    "twice": (scale_all(2.0), r"2\.0. times that"),
    "a quarter more": (scale_all(1.25), r"1\.2. times that"),
    "the other sign": (scale_all(-1.0), r"-1\.0. times that"),
    "zero": (scale_all(0.0), "0.00 times that"),
    "NaN": (scale_all(math.nan), "nan times that.*computes in fp16"),
    "infinite": (scale_all(math.inf), "computes in fp16"),
    "all missing": (without("", lambda _: None), "0.00 times that"),
    "one block missing": (without("1.", lambda _: None), "times that|trained tensors get no gradient, such as 1"),
    "one block zero": (without("0.", torch.zeros_like), "times that|trained tensors get no gradient, such as 0"),
    "one block NaN": (without("1.", lambda p: p * math.nan), "nan times that"),
    "a constant input": (Detached, "times that|trained tensors get no gradient"),
    "a constant adapter": (Constant, "times that|trained tensors get no gradient"),
    "weights that were changed for the forward": (Unhooked, "times that"),
    "an adapter that is not at work": (Deaf, "not at work"),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_is_said(fault, begun):
    kind, sentence = FAULTS[fault]
    flow = kind(begun=begun)
    before = {name: p.detach().clone() for name, p in flow.parameters.items()}
    with pytest.raises(RuntimeError, match=f"gradient of this model is wrong.*({sentence}).*Nothing was changed"):
        check(flow)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in flow.parameters.items())


def test_one_of_many_blocks_that_is_missing_is_said_though_the_sum_is_about_right():
    """A block of FLUX's 57 has less of the slope than the tolerance."""
    flow = LoraFlow(begun=True)
    small = 0.2
    layer = flow.layer
    velocity = flow.velocity
    flow.layer = lambda hidden, i, base, up, down: layer(hidden, i, base, (small if i == 1 else 1) * up, down)

    def without_it(x, sigma, cond):
        done = velocity(x, sigma, cond)

        def pull(gradient):
            done.pull(gradient)
            flow.parameters["1.up"].grad = None
            flow.parameters["1.down"].grad = None

        return Pullback(done.value, pull)

    flow.velocity = without_it
    slope = measure(flow, X, SIGMA, COND)
    assert abs(slope.ratio - 1) < TOLERANCE
    with pytest.raises(RuntimeError, match=r"2 of 6 trained tensors get no gradient, such as 1\.down, but samples"):
        check(flow)


@pytest.mark.parametrize("stage", ["sampled_velocity", "velocity"])
def test_whatever_is_raised_on_the_way_everything_is_put_back(stage):
    flow = LoraFlow(begun=True)
    before = {name: p.detach().clone() for name, p in flow.parameters.items()}
    asked = getattr(flow, stage)
    calls = []

    def fail(*args):
        calls.append(1)
        if len(calls) == (2 if stage == "sampled_velocity" else 1):
            raise torch.OutOfMemoryError("no memory")
        return asked(*args)

    setattr(flow, stage, fail)
    with pytest.raises(torch.OutOfMemoryError):
        check(flow)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in flow.parameters.items())


def test_samples_that_are_not_finite_are_the_runs_to_tell():
    flow = LoraFlow()
    sampled = flow.sampled_velocity
    checked = set()
    flow.sampled_velocity = lambda x, sigma, cond: x * math.nan
    check_once(checked, flow, COND, at)
    assert not checked  # for when they are
    flow.sampled_velocity = sampled
    check_once(checked, flow, COND, at)
    assert checked


def test_the_check_is_made_once_for_each_signature():
    flow = LoraFlow()
    checked = set()
    asked = []
    sampled = flow.sampled_velocity
    flow.sampled_velocity = lambda *args: asked.append(1) or sampled(*args)
    flow.signature = lambda cond: ("plain" if cond is COND else "hooked",)
    check_once(checked, flow, COND, at)
    first = len(asked)
    check_once(checked, flow, COND, at)
    assert 0 < first == len(asked) <= 12
    check_once(checked, flow, COND.clone(), at)
    assert len(asked) == 2 * first


def test_one_that_failed_is_made_again():
    flow = FAULTS["twice"][0]()
    checked = set()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            check_once(checked, flow, COND, at)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_one_whose_samples_were_not_finite_is_made_again(spoilt):
    """Else one prompt that overflows would let every wrong gradient after it pass."""
    flow = FAULTS["twice"][0]()
    checked = set()
    sampled = flow.sampled_velocity
    flow.sampled_velocity = lambda x, sigma, cond: x * spoilt
    check_once(checked, flow, COND, at)
    flow.sampled_velocity = sampled
    with pytest.raises(RuntimeError, match="gradient of this model is wrong"):
        check_once(checked, flow, COND, at)


# In a run


def test_training_is_the_same_with_the_check(tmp_path, monkeypatch):
    whole = go(tmp_path / "checked", 3, TWO)
    monkeypatch.setattr("srpo_core.run.update.check_once", lambda *_: None)
    assert same(state(whole), state(go(tmp_path / "unchecked", 3, TWO)))


@pytest.mark.parametrize("updates", [0, 2])
def test_a_fault_stops_the_run_before_it_trains_on_it(tmp_path, updates):
    """At its first update, and at one before which something changed."""
    parts = world()
    flow = parts["flow"]
    run = Run(tmp_path, flow.parameters, SETTINGS)
    if updates:
        train(run, Training(batching=TWO, **parts), updates)
    before = state(run)
    velocity = flow.velocity
    flow.velocity = lambda *args: twice(velocity(*args))
    flow.signature = lambda _: "changed"
    rolled = []
    flow.rollout = lambda *_: rolled.append(1)
    with pytest.raises(RuntimeError, match=r"2\.0. times that"):
        train(run, Training(batching=TWO, **parts), 1)
    assert run.updates == updates and same(state(run), before) and not rolled
    assert all(parameter.grad is None for parameter in flow.parameters.values())
    if updates:
        assert json.loads((tmp_path / "run.json").read_text())["updates"] == updates


def twice(done):
    return Pullback(done.value, lambda gradient: done.pull(2 * gradient))


def test_the_toy_flux_of_diffusers_passes_and_a_fault_in_it_does_not():
    flow, _, _, prompts = toy_world(["a red circle on grass"], rank=4)
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = prompts.cond([0])
    assert abs(measure(flow, x, SIGMA, cond).ratio - 1) < 0.04
    check_gradient(flow, x, SIGMA, cond)
    layer = flow.transformer.single_transformer_blocks[1].proj_out
    layer.register_full_backward_hook(lambda _, at_input, __: tuple(0 * gradient for gradient in at_input))
    with pytest.raises(RuntimeError, match="gradient of this model is wrong"):
        check_gradient(flow, x, SIGMA, cond)
