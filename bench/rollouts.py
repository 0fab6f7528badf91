"""Rollouts of half the steps and of half the size against full ones: seconds of training, and what is learned.

    python -m bench.rollouts --seeds 0 1 2

The demo's training (workflow 1, on a real ComfyUI) with each variant of the rollouts, judged as the demo's is. Prints
a line of JSON for each; the last is one object with the means over the seeds, by variant. `seconds` are of the whole
training, the previews before and after included; `cpu_seconds` are the host's of it, over all its threads.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
from find_host import ROOT, find_host

sys.path.append(str(ROOT / "demo"))

from judged import PICTURES, REPORTED, measured, measured_scenes
from worlds import SIZE, HostWorld

VARIANTS = {
    "full": {},
    "half the steps": {"steps": 5},
    "half the size": {"width": SIZE // 2, "height": SIZE // 2},
    "both": {"steps": 5, "width": SIZE // 2, "height": SIZE // 2},
}


def train(world: HostWorld, variant: str, seed: int) -> dict[str, float]:
    """Train a run of its own by such rollouts; returns what that took."""
    world.run_name = f"{variant} {seed}"
    world.inputs["SRPO_Trainer"] |= {"run_name": world.run_name, "adapter.seed": seed}
    world.inputs["SRPO_Train"]["seed"] = seed
    full = {"steps": 10, "width": 0, "height": 0}
    world.inputs["SRPO_Rollouts"] |= full | VARIANTS[variant]
    process = psutil.Process(world.process.pid)
    began = time.monotonic()
    used = sum(process.cpu_times()[:2])
    world.train(world.base)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(sum(process.cpu_times()[:2]) - used, 1),
    }


def rows(world: HostWorld, seeds: list[int], scenes: list) -> list[dict]:
    """The numbers of each variant and seed; each is printed as soon as it is known."""
    judged = [scene for scene in scenes for _ in range(PICTURES)]
    found = [{"rollouts": "before"} | _reported(measured(world.pictures(scenes, PICTURES), judged))]
    print(json.dumps(found[0]), flush=True)
    for seed in seeds:
        for variant in VARIANTS:
            seconds = train(world, variant, seed)
            numbers = _reported(measured(world.pictures(scenes, PICTURES, trained=True), judged))
            found.append({"rollouts": variant, "seed": seed} | seconds | numbers)
            print(json.dumps(found[-1]), flush=True)
    return found


def _reported(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(numbers[name], 4) for name in REPORTED}


def means(found: list[dict]) -> dict[str, dict[str, float]]:
    """The mean of each number over the seeds, by variant."""
    variants = {row["rollouts"]: [other for other in found if other["rollouts"] == row["rollouts"]] for row in found}
    return {variant: _mean(same) for variant, same in variants.items()}


def _mean(same: list[dict]) -> dict[str, float]:
    numbers = [name for name in same[0] if name not in ("rollouts", "seed")]
    return {name: round(sum(row[name] for row in same) / len(same), 4) for name in numbers}


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.rollouts", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=42)
    parser.add_argument("--scenes", type=int, default=24, help="that are judged, of 24")
    options = parser.parse_args()
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI to measure on: set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory(prefix="srpo-rollouts-") as folder:
        with HostWorld(host, Path(folder), 0) as world:
            world.inputs["SRPO_Train"]["updates"] = options.updates
            print(json.dumps(means(rows(world, options.seeds, measured_scenes()[: options.scenes]))))


if __name__ == "__main__":
    main()
