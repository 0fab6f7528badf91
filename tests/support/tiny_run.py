"""Runs on the tiny world, for the tests of a run and of its loop."""

import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training

SETTINGS = Settings(learning_rate=1e-2)
TWO = Batching(shape=SHAPE, batch=2)
HPS = Objective()


def world(reward=None, dtype=torch.float32, objective=HPS):
    terms = [Term(reward=reward or TinyReward(), objective=objective)]
    return dict(flow=TinyFlow(dtype), decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())


def go(folder, updates, batching=TWO, settings=SETTINGS, on_update=lambda _: None, **options):
    """Open the run in `folder` with a fresh model, as after a restart, and make `updates` more updates."""
    parts = world(**options)
    run = Run(folder, parts["flow"].parameters, settings)
    train(run, Training(batching=batching, **parts), updates, on_update)
    return run


def checked(run, flow):
    """The run, which takes the flow model's gradient for right, and so asks the model for its draws alone."""
    run.checked.add(flow.signature(None))
    return run


def opened(folder):
    """The run in `folder` as it lies on disk."""
    return Run(folder, TinyFlow(torch.float32).parameters, SETTINGS)


def state(run):
    """Everything an update depends on or changes, as a flat dict of tensors."""
    names = list(run.parameters)
    slots = {f"{names[i]}.{k}": v for i, s in run.optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {k: v.detach().clone() for k, v in {**run.parameters, **slots}.items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def everything_of(run):
    """The numbers of a run that two of them can be compared by."""
    return {name: value.tolist() for name, value in state(run).items()}, run.updates, run.history, run.spreads
