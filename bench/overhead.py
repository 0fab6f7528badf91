"""What a run does beside training, as a share of the time that the training takes.

    python -m bench.overhead --batch 8 --at-once 1 --steps 25

The toy (diffusers' FLUX) trains as by SRPO Train with these settings, with a state and a snapshot every 5 updates. The
last line is one JSON object: `overhead`, the share of metrics, events, the copy to undo a step, the look for numbers
that are not finite, saves (state and snapshots), LoRAs and one card at the end; `overhead_with_previews`, the same with
4 previews and a card every 5 updates, and the previews from before the training. What is imported, is imported before.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.report.card import draw_card
from srpo_core.run import loop, undo, update
from srpo_core.run.draws import Batching, draw_noise
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.toy.world import toy_world

EVERY = 5  # SRPO Train's defaults, and SRPO Trainer's save_every
PREVIEWS = 4
SETTINGS = Settings(save_every=EVERY, snapshot_every=EVERY)
SHAPE = (16, 8, 8)
PROMPTS = [f"a {colour} {shape} on grass" for colour in ("red", "blue", "cyan") for shape in ("circle", "star")]


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self):
        self.seconds = Counter()

    def timed(self, name: str, function: Any):
        def called(*args: Any, **kwargs: Any):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return called


def world(steps: int) -> dict:
    flow, decoder, reward, dataset = toy_world(PROMPTS, steps=steps, checkpointing=False)
    return dict(
        flow=flow, decoder=decoder, terms=[Term(reward=reward, objective=Objective())], dataset=dataset, window=Window()
    )


def previews(parts: dict, at_once: int) -> torch.Tensor:
    """(PREVIEWS, H, W, 3) in [0, 1]."""
    images = []
    for numbers in torch.arange(PREVIEWS).split(at_once):
        noise = draw_noise(numbers.tolist(), SHAPE)
        latent = parts["flow"].rollout(noise, parts["dataset"].cond(numbers.tolist()))
        images.append(parts["decoder"].decode(latent).value.clamp(0, 1).movedim(1, -1))
    return torch.cat(images)


@contextmanager
def watched(clock: Clock, run: Run):
    """Inside, what a run does beside training is timed, each thing once."""
    run.not_finite = clock.timed("finite", run.not_finite)
    copy_of = undo.copy_of
    save_if_due = update.save_if_due
    describe = update.describe
    events = loop.events

    @contextmanager
    def timed_events(*arguments: Any):
        writer = events(*arguments)
        write = clock.timed("events", writer.__enter__)()
        try:
            yield clock.timed("events", write)
        finally:
            clock.timed("events", writer.__exit__)(None, None, None)

    undo.copy_of = clock.timed("copy", copy_of)
    update.save_if_due = clock.timed("saves", save_if_due)
    update.describe = clock.timed("metrics", describe)
    loop.events = timed_events
    try:
        yield
    finally:
        undo.copy_of = copy_of
        update.save_if_due = save_if_due
        update.describe = describe
        loop.events = events


def measure(updates: int, batch: int, at_once: int, steps: int, folder: Path) -> dict:
    parts = world(steps)
    clock = Clock()
    run = Run(folder / "run", parts["flow"].parameters, SETTINGS)
    lora = clock.timed("LoRAs", parts["flow"].save_lora)
    sample = clock.timed("previews", previews)
    card = clock.timed("cards", lambda *sheets: draw_card(*sheets, run.history, "run").save(folder / "card.png"))
    batching = Batching(shape=SHAPE, batch=batch, at_once=at_once)

    def on_update(metrics: dict):
        if metrics["update"] % EVERY == 0:
            lora(folder / "lora.safetensors")
        done = metrics["update"] - 1
        if done % EVERY == 0 and done < updates:
            card(before, sample(parts, at_once))

    before = sample(parts, at_once)
    draw_card(before, before, run.history, "which imports what it needs")
    train(run, Training(batching=batching, **parts), 1)  # which imports the rest
    clock.seconds.clear()
    before = sample(parts, at_once)
    began = time.perf_counter()
    with watched(clock, run):
        train(run, Training(batching=batching, **parts), updates, on_update)
    lora(folder / "lora.safetensors")
    card(before, sample(parts, at_once))
    return shares(clock.seconds, time.perf_counter() - began, cards=(updates - 1) // EVERY + 1)


def shares(seconds: Counter, whole: float, cards: int) -> dict:
    """whole: from the first update to the last card; the previews from before are in `seconds` alone."""
    once = seconds["previews"] / (cards + 1)
    training = whole + once - sum(seconds.values())
    without = sum(seconds.values()) - seconds["previews"] - seconds["cards"] * (cards - 1) / cards
    return {
        **{f"seconds_{name}": round(value, 3) for name, value in seconds.items()},
        "seconds_training": round(training, 3),
        "overhead": round(without / training, 4),
        "overhead_with_previews": round(sum(seconds.values()) / training, 4),
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="srpo-overhead-") as folder:
        print(json.dumps(measure(**vars(options), folder=Path(folder))))


if __name__ == "__main__":
    main()
