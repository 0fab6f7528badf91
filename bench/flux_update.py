"""One update, ours and the naive one, and its parts by themselves; what they hold and how much they have to compute."""

import argparse
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.protocols import Pullback
from srpo_core.algorithm.step import Noised, one_step_recover, score_recovered
from srpo_core.run.draws import Batching, draw_noise
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores

from .flux_world import Naive, Photos, World
from .measure import Stages, count, live_bytes

POSITION = 500  # of a branch that is measured alone, in the window


@dataclass
class MarkedFlow:
    """World's flow model; `mark` is told what an update is busy with."""

    flow: Any
    mark: Callable[[str], Any]

    @property
    def parameters(self) -> dict[str, Parameter]:
        return self.flow.parameters

    def rollout(self, *args: Any) -> Tensor:
        self.mark("rollout")
        return self.flow.rollout(*args)

    @property
    def samples_depend_on_batch(self) -> bool:
        return self.flow.samples_depend_on_batch

    def velocity(self, *args: Any) -> Pullback:
        self.mark("branch")
        velocity = self.flow.velocity(*args)

        def pull(gradient: Tensor):
            self.mark("branch")
            velocity.pull(gradient)
            self.mark("optimizer")

        return Pullback(velocity.value, pull)

    def sampled_velocity(self, *args: Any) -> Tensor:
        self.mark("comparison")
        return self.flow.sampled_velocity(*args)

    @property
    def exact(self) -> bool:
        return self.flow.exact

    def signature(self, cond: Any) -> Hashable:
        return self.flow.signature(cond)

    def frozen_velocity(self, *args: Any) -> Tensor:
        self.mark("comparison")
        return self.flow.frozen_velocity(*args)


@dataclass
class MarkedDecoder:
    decoder: Any
    mark: Callable[[str], Any]

    def decode(self, latent: Tensor) -> Pullback:
        self.mark("decode")
        image = self.decoder.decode(latent)
        self.mark("reward")

        def pull(gradient: Tensor) -> Tensor:
            self.mark("decode")
            return image.pull(gradient)

        return Pullback(image.value, pull)


class Bench:
    """The world, a run in it, and one sample at which single stages are measured."""

    def __init__(self, world: World, shape: tuple[int, int, int], options: argparse.Namespace, folder: Path):
        at_once = options.at_once
        self.world = world
        self.batching = Batching(shape=shape, batch=options.batch, at_once=at_once)
        self.cond = world.prompts.cond(list(range(at_once)))
        self.noise = draw_noise(list(range(at_once)), shape)
        x0 = torch.randn(len(world.prompts.prompts), *shape)
        self.x0 = x0[:at_once]
        self.data = world.prompts if options.mode == "online" else Photos(**vars(world.prompts), x0=x0)
        self.noised = Noised(self.x0, self.noise, Window().branches([POSITION] * at_once))
        self.branch = self.noised.branches[0]
        self.prompts = world.prompts.prompts[:at_once]
        self.run = Run(folder, world.flow.parameters, Settings(save_every=10**6))
        self.run.checked.add(world.flow.signature(world.prompts.cond([0])))  # once in a run, so no part of an update

    def update(self, mark: Callable = lambda _: None):
        """Ours, as SRPO Train makes it."""
        world = self.world
        flow = MarkedFlow(world.flow, mark)
        decoder = MarkedDecoder(world.decoder, mark)
        training = Training(flow=flow, decoder=decoder, terms=[world.term], dataset=self.data, batching=self.batching)
        make_update(self.run, sample_scores(self.run, training), self.batching.batch)

    def naive_update(self, naive: Naive):
        for _ in range(self.batching.batch // self.batching.at_once):
            x0 = self.x0 if isinstance(self.data, Photos) else naive.flow.rollout(self.noise, self.cond, 0)
            for branch in self.noised.branches:
                naive.branch(Noised(x0, self.noise, self.noised.branches), branch, self.prompts, self.cond)
        naive.step()

    def train_branch(self):
        """FLUX alone: forward, recomputation, backward."""
        velocity = self.world.flow.velocity(self.x0, self.branch.sigma_in, self.cond)
        velocity.pull(self.noise)

    def naive_train_branch(self, naive: Naive):
        velocity = naive.velocity(self.x0, self.branch.sigma_in, self.cond)
        velocity.backward(self.noise.to(velocity))

    def forward(self) -> Tensor:
        return self.world.forward(self.x0, self.branch.sigma_in, self.cond)

    def gradient_to_naive(self, naive: Naive) -> float:
        """Relative difference of the adapter's gradients of one branch, from the loss on."""
        world = self.world
        recovered = one_step_recover(world.flow, self.cond, self.noised, self.branch)
        score_recovered(recovered, self.branch, world.decoder, [world.term], prompts=self.prompts, update=1).pull(1.0)
        naive.branch(self.noised, self.branch, self.prompts, self.cond)
        pairs = list(zip(world.flow.parameters.values(), naive.parameters))
        away = sum((ours.grad - theirs.grad).double().square().sum() for ours, theirs in pairs)
        length = sum(theirs.grad.double().square().sum() for _, theirs in pairs)
        for parameter in (parameter for pair in pairs for parameter in pair):
            parameter.grad = None
        return (away / length).sqrt().item()

    def kept(self, velocity: Callable) -> int:
        """Bytes that wait for the backward of a branch."""
        with live_bytes(self.world.device) as memory:
            result = velocity(self.x0, self.branch.sigma_in, self.cond)  # noqa: F841
            return memory.held

    def peaks(self) -> dict[str, int]:
        """Bytes on the device at most, by stage of an update, with no more models there than the stage needs.

        Counted beside the models, which stay where they are; their sizes, and the adapter's, are added. Not those of
        streamed models: the host has as much of them there as fits.
        """
        world = self.world
        with live_bytes(world.device) as memory:
            stages = Stages(world.device, memory)
            self.update(stages.mark)
            stages.mark()
        flux = world.base.model_size()
        vae = world.vae.patcher.model_size()
        reward = sum(p.nbytes for p in world.term.reward.image_tower.parameters())
        models = dict.fromkeys(stages.peaks, flux) | {"decode": vae, "reward": reward, "optimizer": 0}
        slots = (slot for state in self.run.optimizer.state.values() for slot in state.values())
        adapter = sum(tensor.nbytes for tensor in (*world.flow.parameters.values(), *slots))
        added = {} if world.base.is_dynamic() else models
        return {name: adapter + added.get(name, 0) + peak for name, peak in stages.peaks.items()}

    def floors(self, steps: int) -> dict[str, tuple[float, int]]:
        """FLOPs that each stage of an update can't do without, and the bytes moved by what was counted for it."""
        world = self.world
        term = self.world.term
        latent = self.x0
        with torch.no_grad():
            image = world.decoder.decode(latent).value.clamp(0, 1)
        words = term.objective.texts(self.prompts, 1)

        def score():
            with torch.no_grad():
                term.reward.score_many(image, *words)

        step, step_bytes = count(self.forward)
        decode, decode_bytes = count(lambda: world.decoder.decode(latent))
        reward, reward_bytes = count(score)
        recomputed = world.flow.differentiable.settings.checkpointing
        found = {
            "rollout": (steps * sum(step.values()), steps * step_bytes),
            "comparison": (sum(step.values()), step_bytes),
            "branch": (2 * with_gradient(step, recomputed), 2 * (2 + recomputed) * step_bytes),
            "decode": (2 * with_gradient(decode, False), 4 * decode_bytes),
            "reward": (2 * with_gradient(reward, False), 4 * reward_bytes),
        }
        return found if self.data is world.prompts else {k: v for k, v in found.items() if k != "rollout"}


def with_gradient(forward: Counter, recomputed: bool) -> float:
    """FLOPs of a forward and its backward to the input; fused attention computes its scores again on the way."""
    linear = forward["linear"]
    attention = forward["attention"]
    return (1 + recomputed) * (linear + attention) + linear + 2.5 * attention
