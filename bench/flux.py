"""One update at the size of FLUX.1-dev, random weights: seconds and memory of its stages, against plain autograd.

    python -m bench.flux --device cuda --size 720x720 --base bf16 --mode online
    python -m bench.flux --device cpu --size 64x64 --base fp32 --toy

An update is what SRPO Train makes of it: rollouts (or photos), both branches, decoded, rewarded and pulled back, one
step of the optimiser. Plain autograd ("naive") is the same models of the host with the same weights and adapter,
everything kept, one backward per branch from the loss (see flux_world.Naive). Seconds are the least of several, ours
and the naive ones in turns; on a CPU they are its own, in one thread. Needs a ComfyUI (see the README) and, but for the
toy, diffusers.

The last line is one JSON object. Among others: `branch_per_forward`, seconds of a training branch (forward,
recomputation, backward to the adapter) by those of a forward without gradient; `prompt_seconds`, an update's by its
prompts; `time_to_naive`, an update's seconds by the naive one's; `activations_to_naive`, bytes kept between a branch's
forward and backward by what the naive one keeps; `peak_bytes`, of the largest stage, with the models that it needs;
`estimate_error`, of what SRPO Train says before a run, the largest relative error over the stages;
`gradient_to_naive`, relative difference of the gradients.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from in_process import load_pack, pack_module
from torch import Tensor

from srpo_core.find_host import find_host
from srpo_core.loop import Schedule, draw_noise, sample_scores
from srpo_core.models import Pullback
from srpo_core.run import Run, Settings
from srpo_core.schedule import Window
from srpo_core.step import Noised, one_step_recover, score_recovered

from .flux_report import draw, table
from .flux_world import BASES, Naive, Photos, World, make_world
from .measure import Stages, count, interleaved, limits, live_bytes

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = "device size base mode toy steps batch at_once checkpointing kept parked compiled".split()
POSITION = 500  # of a branch that is measured alone, in the window


@dataclass
class MarkedFlow:
    """World's flow model; `mark` is told what an update is busy with."""

    flow: Any
    mark: Callable[[str], Any]

    def rollout(self, *args) -> Tensor:
        self.mark("rollout")
        return self.flow.rollout(*args)

    def velocity(self, *args) -> Pullback:
        self.mark("branch")
        velocity = self.flow.velocity(*args)

        def pull(gradient: Tensor):
            self.mark("branch")
            velocity.pull(gradient)
            self.mark("optimizer")

        return Pullback(velocity.value, pull)

    def frozen_velocity(self, *args) -> Tensor:
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
        self.world, self.schedule = world, Schedule(shape, options.batch, at_once)
        self.cond = world.prompts.cond(list(range(at_once)))
        self.noise = draw_noise(list(range(at_once)), shape)
        x0 = torch.randn(len(world.prompts.prompts), *shape)
        self.x0 = x0[:at_once]
        self.data = world.prompts if options.mode == "online" else Photos(**vars(world.prompts), x0=x0)
        self.noised = Noised(self.x0, self.noise, Window().branches([POSITION] * at_once))
        self.branch, self.prompts = self.noised.branches[0], world.prompts.prompts[:at_once]
        self.run = Run(folder, world.flow.parameters, Settings(save_every=10**6))

    def update(self, mark: Callable = lambda _: None):
        """Ours, as SRPO Train makes it."""
        world = self.world
        flow, decoder = MarkedFlow(world.flow, mark), MarkedDecoder(world.decoder, mark)
        scores = sample_scores(self.run, flow, decoder, [world.term], Window(), self.data, self.schedule)
        self.run.update(scores, self.schedule.batch)

    def naive_update(self, naive: Naive):
        for _ in range(self.schedule.batch // self.schedule.at_once):
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
        score_recovered(recovered, self.branch, world.decoder, [world.term], self.prompts, 1).pull(1.0)
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

        Counted beside the models, which stay where they are; theirs, and the adapter's, are added by their sizes.
        """
        world = self.world
        with live_bytes(world.device) as memory:
            stages = Stages(world.device, memory)
            self.update(stages.mark)
            stages.mark()
        flux, vae = world.base.model_size(), world.vae.patcher.model_size()
        reward = sum(p.nbytes for p in world.term.reward.image_tower.parameters())
        models = {"decode": vae, "reward": reward, "optimizer": 0}
        slots = (slot for state in self.run.optimizer.state.values() for slot in state.values())
        adapter = sum(tensor.nbytes for tensor in (*world.flow.parameters.values(), *slots))
        # On a CPU Run's copy of its state, to undo a step with, is on the same device; it is no part of the estimate.
        start = adapter - (stages.before if world.device.type == "cpu" else 0)
        return {name: start + models.get(name, flux) + peak for name, peak in stages.peaks.items()}

    def floors(self, steps: int) -> dict[str, tuple[float, int]]:
        """FLOPs that each stage of an update can't do without, and the bytes moved by what was counted for it."""
        world, term = self.world, self.world.term
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
        recomputed = world.flow.differentiable.checkpointing
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
    linear, attention = forward["linear"], forward["attention"]
    return (1 + recomputed) * (linear + attention) + linear + 2.5 * attention


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """All numbers of one setting."""
    torch.manual_seed(0)
    return measured(make_world(options.toy, BASES[options.base], options.batch, options.steps), options, folder)


def measured(world: World, options: argparse.Namespace, folder: Path) -> dict:
    """The same of a world that is there already."""
    use = {name: getattr(options, name) for name in ("checkpointing", "kept", "parked", "compiled")}
    world.flow = type(world.flow)(world.flow.patcher, world.flow.sampling, world.flow.guidance, **use)
    width, height = (int(side) for side in options.size.split("x"))
    shape = pack_module("nodes.host.flow_model").latent_shape(world.base, width, height)
    bench = Bench(world, shape, options, folder)
    bench.update()  # loads, encodes the words, makes the optimiser's state
    peaks, estimate = bench.peaks(), estimated(world, shape, options)
    works = {"forward": bench.forward, "branch": bench.train_branch, "update": bench.update}
    kept, compared = {"ours": bench.kept(world.flow.velocity)}, {}
    if options.naive:
        naive = Naive(world)
        compared["gradient_to_naive"] = bench.gradient_to_naive(naive)
        kept["naive"] = bench.kept(naive.velocity)
        works["naive branch"] = partial(bench.naive_train_branch, naive)
        works["naive update"] = partial(bench.naive_update, naive)
    least = interleaved(works, options.repeats, world.device)
    if options.naive:
        compared |= {
            "branch_to_naive": round(least["branch"] / least["naive branch"], 3),
            "time_to_naive": round(least["update"] / least["naive update"], 3),
            "activations_to_naive": round(kept["ours"] / kept["naive"], 4),
        }
    stages = fastest_stages(bench, options.repeats)
    return {
        **{name: getattr(options, name) for name in SETTINGS},
        "seconds": {name: round(value, 4) for name, value in least.items()},
        "stage_seconds": {name: round(value, 4) for name, value in stages.items()},
        "update_seconds": round(least["update"], 4),
        "prompt_seconds": round(least["update"] / options.batch, 4),
        "branch_per_forward": round(least["branch"] / least["forward"], 3),
        **compared,
        "kept_bytes": kept,
        "stage_bytes": peaks,
        "peak_bytes": max(peaks.values()),
        "estimate": estimate,
        "estimate_error": round(max(abs(estimate[name] / peaks[name] - 1) for name in estimate if name in peaks), 3),
        "floors": floors_of(bench, options),
    }


def fastest_stages(bench: Bench, repeats: int) -> dict[str, float]:
    """Seconds of each stage of an update, both branches together: the least of several updates."""
    found = []
    for _ in range(repeats):
        stages = Stages(bench.world.device)
        bench.update(stages.mark)
        stages.mark()
        found.append(stages.seconds)
    return {name: min(seconds[name] for seconds in found) for name in found[0]}


def estimated(world: World, shape: tuple[int, int, int], options: argparse.Namespace) -> dict[str, int]:
    """What SRPO Train expects: bytes at most, by stage."""
    estimate, model = pack_module("nodes.host.planning").estimate, world.flow.patcher
    cond, rewards = world.prompts.cond([0]), [world.term.reward]
    memory = options.checkpointing, options.kept, options.parked
    needs = estimate(model, world.vae, rewards, cond, shape, options.at_once, *memory)
    return {stage: need.peak for stage, need in needs.items()}


def floors_of(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each stage its FLOPs, bytes moved, and the seconds in which the device could do those FLOPs."""
    dtype = bench.world.base.model.get_dtype_inference()
    speed, bandwidth = limits(bench.world.device, dtype)
    floors = {
        name: {"flops": flops, "bytes": moved, "seconds": flops / speed}
        for name, (flops, moved) in bench.floors(options.steps).items()
    }
    return {"device": {"flops": speed, "bytes": bandwidth}, **floors}


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.flux", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", default="720x720", help="width x height in pixels")
    parser.add_argument("--base", choices=BASES, default="bf16", help="type of FLUX's weights")
    parser.add_argument("--mode", choices=("online", "offline"), default="online", help="rollouts, or photos")
    parser.add_argument("--toy", action="store_true", help="the sizes of the toy FLUX, with its VAE and its reward")
    parser.add_argument("--steps", type=int, default=25, help="of a rollout")
    parser.add_argument("--batch", type=int, default=1, help="prompts in one update")
    parser.add_argument("--at-once", type=int, default=1, help="of them in one forward; divides the batch")
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--kept", type=int, default=0, help="blocks whose activations are kept all the same")
    parser.add_argument("--parked", action="store_true", help="inputs of the recomputed blocks wait in RAM")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of FLUX's blocks")
    parser.add_argument("--no-naive", dest="naive", action="store_false", help="no comparison with plain autograd")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="a PNG to draw seconds and roofline in")
    options = parser.parse_args()
    if find_host() is None:
        raise SystemExit("There is no ComfyUI to measure on: set COMFYUI_PATH.")
    # The host has modules of our names, and must be imported without the project's root in the way.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    load_pack(cpu=options.device == "cpu")
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="srpo-bench-") as folder:
        result = measure(options, Path(folder))
    if options.picture:
        draw(result, options.picture)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
