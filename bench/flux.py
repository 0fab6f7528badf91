"""One update at the size of FLUX.1-dev, random weights: seconds and memory of its stages, against plain autograd.

    python -m bench.flux --device cuda --size 720x720 --base bf16 --mode online
    python -m bench.flux --device cpu --size 64x64 --base fp32 --toy
    python -m bench.flux --device cpu --size 720x720 --base fp8 --compute bf16 --mode offline --no-naive --repeats 0

The last one counts the bytes of the real size without a GPU, within an hour in 24 GB of RAM.

An update is what SRPO Train makes of it: rollouts (or photos), both branches, decoded, rewarded and pulled back, one
step of the optimiser. Plain autograd ("naive") is the same models of the host with the same weights and adapter,
everything kept, one backward per branch from the loss (see flux_world.Naive). Seconds are the least of several, ours
and the naive ones in turns; on a CPU they are its own, in one thread. Needs a ComfyUI (see the README) and, but for the
toy, diffusers.

The last line is one JSON object. Among others: `branch_per_forward`, seconds of a training branch (forward,
recomputation, backward to the adapter) by those of a forward without gradient; `prompt_seconds`, an update's by its
prompts; `time_to_naive`, an update's seconds by the naive one's; `activations_to_naive`, bytes kept between a branch's
forward and backward by what the naive one keeps; `peak_bytes`, of the largest stage, with the models that it needs;
`card_bytes`, of a streamed one, what was used of the device; `estimate_error`, of what SRPO Train says before a run,
the largest relative error over the stages; `gradient_to_naive`, relative difference of the gradients.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from find_host import ROOT, find_host
from in_process import load_pack, new_flow, pack_module

from .flux_bases import BASES, QUANTISED
from .flux_report import draw, table
from .flux_update import Bench
from .flux_world import Naive, World, make_world
from .measure import Stages, interleaved, limits
from .streamed import SmallCard, models_streamed, prepare

COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SETTINGS = (
    "device size base compute mode toy steps batch at_once checkpointing kept_blocks offload compiled streamed".split()
)


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """All numbers of one setting."""
    torch.manual_seed(0)
    with models_streamed() if options.streamed else contextlib.nullcontext():
        compute = COMPUTE.get(options.compute)
        world = make_world(options.base, toy=options.toy, batch=options.batch, steps=options.steps, compute=compute)
    if not options.streamed:
        return measure_in(world, options, folder)
    with SmallCard(int(options.streamed * 1e9)) as card:
        return measure_in(world, options, folder) | {"card_bytes": card.used}


def measure_in(world: World, options: argparse.Namespace, folder: Path) -> dict:
    blocks = {name: getattr(options, name) for name in ("checkpointing", "kept_blocks", "offload", "compiled")}
    world.flow = new_flow(world.flow.patcher, world.flow.sampling, world.flow.guidance, **blocks)
    width, height = (int(side) for side in options.size.split("x"))
    shape = pack_module("nodes.host.fitting").latent_shape(world.base, width, height)
    bench = Bench(world, shape, options, folder)
    bench.update()  # loads, encodes the words, makes the optimiser's state
    peaks = bench.peaks()
    estimate = estimated(world, shape, options)
    result = {
        **{name: getattr(options, name) for name in SETTINGS},
        "stage_bytes": peaks,
        "peak_bytes": max(peaks.values()),
        "estimate": estimate,
        "estimate_error": round(max(abs(estimate[name] / peaks[name] - 1) for name in estimate if name in peaks), 3),
    }
    naive = Naive(world) if options.naive else None
    if naive:
        kept = {"ours": bench.kept(world.flow.velocity), "naive": bench.kept(naive.velocity)}
        result |= {"kept_bytes": kept, "activations_to_naive": round(kept["ours"] / kept["naive"], 4)}
        result["gradient_to_naive"] = bench.gradient_to_naive(naive)
    return result | (timed(bench, naive, options) if options.repeats else {})


def timed(bench: Bench, naive: Naive | None, options: argparse.Namespace) -> dict:
    """What there is to say in seconds."""
    works = {"forward": bench.forward, "branch": bench.train_branch, "update": bench.update}
    if naive:
        works["naive branch"] = partial(bench.naive_train_branch, naive)
        works["naive update"] = partial(bench.naive_update, naive)
    least = interleaved(works, options.repeats, bench.world.device)
    stages = fastest_stages(bench, options.repeats)
    result = {
        "seconds": {name: round(value, 4) for name, value in least.items()},
        "stage_seconds": {name: round(value, 4) for name, value in stages.items()},
        "update_seconds": round(least["update"], 4),
        "prompt_seconds": round(least["update"] / options.batch, 4),
        "branch_per_forward": round(least["branch"] / least["forward"], 3),
        "floors": floors_of(bench, options),
    }
    if naive:
        result["branch_to_naive"] = round(least["branch"] / least["naive branch"], 3)
        result["time_to_naive"] = round(least["update"] / least["naive update"], 3)
    return result


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
    module = pack_module("nodes.host.memory_estimate")
    model = world.flow.patcher
    workload = module.Workload(
        model=model,
        vae=world.vae,
        rewards=[world.term.reward],
        cond=world.prompts.cond([0]),
        shape=shape,
        batch=options.batch,
    )
    needs = module.estimate(workload, options.at_once, world.flow.differentiable.settings)
    return {stage: need.working if model.is_dynamic() else need.peak for stage, need in needs.items()}


def floors_of(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Each stage's FLOPs, bytes moved, and the seconds in which the device could do those FLOPs."""
    dtype = bench.world.base.model.get_dtype_inference()
    speed, bandwidth = limits(bench.world.device, dtype)
    floors = {
        name: {"flops": flops, "bytes": moved, "seconds": flops / speed}
        for name, (flops, moved) in bench.floors(options.steps).items()
    }
    return {"device": {"flops": speed, "bytes": bandwidth}, **floors}


def parse_options() -> argparse.Namespace:
    """What was asked for on the command line. Ends the process, with a sentence, where it can't be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.flux", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", default="720x720", help="width x height in pixels")
    parser.add_argument("--base", choices=BASES, default="bf16", help="form of FLUX's weights")
    parser.add_argument("--compute", choices=COMPUTE, help="type to compute in, if not the host's choice")
    parser.add_argument("--mode", choices=("online", "offline"), default="online", help="rollouts, or photos")
    parser.add_argument("--toy", action="store_true", help="the sizes of the toy FLUX, with its VAE and its reward")
    parser.add_argument("--steps", type=int, default=25, help="of a rollout")
    parser.add_argument("--batch", type=int, default=1, help="prompts in one update")
    parser.add_argument("--at-once", type=int, default=1, help="of them in one forward; divides the batch")
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--kept-blocks", type=int, default=0, help="blocks whose activations are kept all the same")
    parser.add_argument("--offload", action="store_true", help="inputs of the recomputed blocks wait in RAM")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of FLUX's blocks")
    parser.add_argument(
        "--streamed", type=float, help="GB of the device to leave free, with ComfyUI's dynamic VRAM; without naive"
    )
    parser.add_argument("--no-naive", dest="naive", action="store_false", help="no comparison with plain autograd")
    parser.add_argument("--repeats", type=int, default=5, help="0: bytes alone, nothing in seconds")
    parser.add_argument("--picture", type=Path, help="a PNG to draw seconds and roofline in")
    options = parser.parse_args()
    if options.picture and not options.repeats:
        parser.error("--picture shows seconds: it needs --repeats.")
    if options.naive and (options.streamed or options.base in QUANTISED):
        parser.error("Plain autograd needs all weights there, and as they are: add --no-naive.")
    if options.streamed and options.device == "cpu":
        parser.error("--streamed needs --device cuda.")
    return options


def main():
    options = parse_options()
    if options.streamed:
        prepare()
    if find_host() is None:
        raise SystemExit("There is no ComfyUI to measure on: set COMFYUI_PATH.")
    # The host has modules of our names, and must be imported without the project's root in the way.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    load_pack(cpu=options.device == "cpu")
    if options.device == "cpu" and options.repeats:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="srpo-bench-") as folder:
        result = measure(options, Path(folder))
    if options.picture:
        draw(result, options.picture)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
