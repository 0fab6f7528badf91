"""`make demo`: fine-tune the toy FLUX, and measure what that did.

Through a real ComfyUI where one is found (workflow 1, headless; pictures by stock nodes), else with diffusers.
Leaves in demo_out/: before_after.png, training.png, the LoRA, and report.json.
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from rich.progress import Progress

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "harness")]

from find_host import ROOT, find_host
from judged import PICTURES, REPORTED, measured, measured_scenes
from worlds import DiffusersWorld, HostWorld

from srpo_core.pictures import to_picture
from srpo_core.report.card import tile

log = logging.getLogger("demo")

SHOWN = 24


def before_after(before: torch.Tensor, after: torch.Tensor) -> Image.Image:
    """The first pictures in pairs of columns, enlarged: left as the model was, right as it is."""
    sheets = [tile(images[:SHOWN].movedim(1, -1), 6) for images in (before, after)]
    gap = torch.ones(sheets[0].shape[0], 12, 3).numpy()
    sheet = torch.cat([torch.from_numpy(part) for part in (sheets[0], gap, sheets[1])], 1)
    picture = to_picture(sheet)
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


def main():
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "demo_out")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and of the training noise")
    parser.add_argument("--without-comfyui", action="store_true", help="use diffusers even where a ComfyUI is found")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    log.info("On two CPU cores this takes four to six minutes.")
    host = None if options.without_comfyui else find_host()
    with contextlib.ExitStack() as stack:
        if host:
            log.info("Starting the ComfyUI in %s ...", host)
            base = stack.enter_context(tempfile.TemporaryDirectory(prefix="srpo-demo-"))
            world = stack.enter_context(HostWorld(host, Path(base), options.seed))
        else:
            world = DiffusersWorld(options.seed)
        log.info("Running on %s.", world.name)
        report = run(world, options.out)
    report["seconds"] = round(time.monotonic() - started, 1)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    log.info("%s", json.dumps(report, indent=2))
    log.info("Look at %s/before_after.png and training.png.", options.out)


@contextlib.contextmanager
def watched(world) -> Iterator[None]:
    """Shows how far the world is, and about how long it takes yet, on a terminal."""
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=1.0)
        world.on_progress = lambda share: bar.update(task, completed=share)
        yield


def run(world, out: Path) -> dict:
    """Sample, train, sample again; the pictures, the LoRA and the numbers."""
    scenes = measured_scenes()
    log.info("Sampling %d pictures of each of %d scenes, by the model as it is ...", PICTURES, len(scenes))
    with watched(world):
        before = world.pictures(scenes, PICTURES)
    log.info("Training: %d updates ...", world.updates)
    with watched(world):
        updates = world.train(out)
    log.info("Sampling them again, with the LoRA ...")
    with watched(world):
        after = world.pictures(scenes, PICTURES, trained=True)
    scenes = [scene for scene in scenes for _ in range(PICTURES)]
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(0))  # a mix of scenes to show
    before_after(before[order], after[order]).save(out / "before_after.png")
    numbers = {"before": measured(before, scenes), "after": measured(after, scenes)}
    report = {"host": world.name, "updates": updates, "pictures": len(scenes)}
    return report | {f"{key}_{when}": numbers[when][key] for key in REPORTED for when in ("before", "after")}


if __name__ == "__main__":
    main()
