"""What Apple's MPS can't: float64, and an antialiased resize's backward. No Mac was at hand: a stand-in refuses."""

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.rewards import pixels
from srpo_core.rewards.pixels import Pixels
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training


class LikeMPS(TorchFunctionMode):
    """Inside, tensors that were made before are on a device without float64, and all that comes of them, until `cpu`.

    What is made inside without a tensor is on the CPU.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        to_cpu = function is torch.Tensor.cpu or "cpu" in [value for value in args[1:] if isinstance(value, str)]
        on_cpu = to_cpu or all(getattr(value, "made_on_cpu", False) for value in given)
        if kwargs.get("antialias") and not on_cpu:
            raise NotImplementedError("MPS has no backward of an antialiased resize")
        result = function(*args, **kwargs)
        if to_cpu and any(result is value for value in given):
            result = result.view_as(result)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                if on_cpu:
                    value.made_on_cpu = True
                elif value.dtype == torch.float64:
                    raise TypeError(f"MPS has no float64, and {resolve_name(function)} makes it")
        return result


def test_the_stand_in_refuses():
    x = torch.rand(1, 3, 8, 8)
    with LikeMPS():
        assert x.cpu().double().sum().item() > 0 and torch.ones(3, dtype=torch.float64).to(x).dtype == torch.float32
        with pytest.raises(TypeError, match="no float64"):
            (x + 1).double()
        with pytest.raises(NotImplementedError, match="antialiased"):
            torch.nn.functional.interpolate(x, size=(4, 4), mode="bicubic", antialias=True)


class Seeing(TinyReward):
    """Looks through a tower's preprocessing."""

    def score_many(self, images, *texts):
        return super().score_many(Pixels(8)(images), *texts)


def test_updates_make_no_float64_there(tmp_path, monkeypatch):
    """With the check of the gradient and two rewards, on a tiny world."""
    monkeypatch.setattr(pixels, "WITHOUT_BACKWARD", ("cpu",))
    flow = TinyFlow(torch.float32)
    terms = [Term(reward=Seeing(), objective=Objective()), Term(reward=TinyReward(), objective=Objective(), name="2")]
    world = dict(flow=flow, decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())
    run = Run(tmp_path, flow.parameters, Settings(ema=0.9))
    before = {name: parameter.detach().clone() for name, parameter in flow.parameters.items()}
    with LikeMPS():
        train(run, Training(batching=Batching(shape=SHAPE, batch=2), **world), 2)
    assert run.updates == 2 and all((flow.parameters[name] != value).any() for name, value in before.items())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(40, 40), (97, 61), (13, 20)])
def test_the_resize_by_matrices_is_the_other_one(size, resize, interpolation, monkeypatch):
    preprocess = Pixels(28, resize=resize, interpolation=interpolation)
    images = torch.rand(2, 3, *size)
    toward = torch.randn(2, 3, 28, 28)
    found = []
    for devices in (("mps",), ("cpu",)):
        monkeypatch.setattr(pixels, "WITHOUT_BACKWARD", devices)
        leaf = images.clone().requires_grad_()
        seen = preprocess(leaf)
        found.append((seen.detach(), torch.autograd.grad(seen, leaf, toward)[0]))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
