"""Rollouts of half the steps and of half the size against full ones: seconds of training, and what is learned.

    python -m bench.rollouts --seeds 0 1 2

The demo's training (workflow 1, on a real ComfyUI) with each kind of rollout, judged as the demo's is. Prints a line of
JSON for each; the last is one object with the means over the seeds, by kind. `seconds` are of the whole training, the
previews before and after included; `cpu_seconds` are the host's of it, over all its threads.
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

KINDS = {
    "full": {},
    "half the steps": {"steps": 5},
    "half the size": {"width": SIZE // 2, "height": SIZE // 2},
    "both": {"steps": 5, "width": SIZE // 2, "height": SIZE // 2},
}


def train(world: HostWorld, kind: str, seed: int, updates: int, out: Path) -> dict[str, float]:
    """Train a run of its own by rollouts of this kind; returns what that took."""
    world.run_name = f"{kind} {seed}"
    world.inputs["SRPO_Trainer"] |= {"run_name": world.run_name, "adapter.seed": seed}
    world.inputs["SRPO_Train"] |= {"seed": seed, "updates": updates}
    full = {"steps": 10, "width": 0, "height": 0}
    world.inputs["SRPO_Rollouts"] |= full | KINDS[kind]
    process = psutil.Process(world.process.pid)
    began = time.monotonic()
    used = sum(process.cpu_times()[:2])
    world.train(out)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(sum(process.cpu_times()[:2]) - used, 1),
    }


def rows(world: HostWorld, seeds: list[int], updates: int, scenes: list, out: Path) -> list[dict]:
    """The numbers of each kind and seed; each is printed as soon as it is known."""
    judged = [scene for scene in scenes for _ in range(PICTURES)]
    found = [{"kind": "before"} | _reported(measured(world.pictures(scenes, PICTURES), judged))]
    print(json.dumps(found[0]), flush=True)
    for seed in seeds:
        for kind in KINDS:
            seconds = train(world, kind, seed, updates, out)
            numbers = _reported(measured(world.pictures(scenes, PICTURES, trained=True), judged))
            found.append({"kind": kind, "seed": seed} | seconds | numbers)
            print(json.dumps(found[-1]), flush=True)
    return found


def _reported(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(numbers[name], 4) for name in REPORTED}


def means(found: list[dict]) -> dict[str, dict[str, float]]:
    """The mean of each number over the seeds, by kind."""
    kinds = {row["kind"]: [other for other in found if other["kind"] == row["kind"]] for row in found}
    return {kind: _mean(same) for kind, same in kinds.items()}


def _mean(same: list[dict]) -> dict[str, float]:
    numbers = [name for name in same[0] if name not in ("kind", "seed")]
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
        base = Path(folder) / "base"
        base.mkdir()
        with HostWorld(host, base, 0) as world:
            scenes = measured_scenes()[: options.scenes]
            print(json.dumps(means(rows(world, options.seeds, options.updates, scenes, Path(folder)))))


if __name__ == "__main__":
    main()
