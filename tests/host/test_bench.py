"""The benchmark scripts run, at toy size, and say what their readers look for.

Those that start nothing run in one process, as most of each one's time goes to its imports.
"""

import json
import os
import subprocess
import sys

import pytest
from find_host import ROOT

TOGETHER = {
    "reward": ("--size", "toy", "--dtype", "fp32", "--texts", "18", "--pixels", "64"),
    "pixels": (),
    "overhead": ("--updates", "5", "--batch", "1", "--steps", "1"),
}
EACH = """
import contextlib, io, json, sys
from importlib import import_module

last = {}
commands = json.loads(sys.argv[1])
for module, arguments in commands.items():
    sys.argv[1:] = arguments
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        import_module(f"bench.{module}").main()
    last[module] = out.getvalue().splitlines()[-1]
print(json.dumps(last))
"""


def last_line(module: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", f"bench.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def numbers_of() -> dict[str, dict]:
    """The last line of each module that is in TOGETHER."""
    process = [sys.executable, "-c", EACH, json.dumps(TOGETHER)]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {module: json.loads(last) for module, last in json.loads(done.stdout.splitlines()[-1]).items()}


def test_reward(numbers_of):
    numbers = numbers_of["reward"]
    assert numbers["texts"] == 18 and numbers["texts_missing_on_next_start"] == 0
    assert numbers["score_with_gradient_seconds"] > 0
    assert numbers["peak_while_encoding_texts"] > numbers["image_tower_bytes"] > 0


def test_our_preprocessing_is_that_of_the_models_own_pipelines(numbers_of):
    """Within PIL's 8 bits, on what is no worst case."""
    for model, kinds in numbers_of["pixels"].items():
        assert kinds["gradient"]["largest"] < 1 / 255 and kinds["grain"]["mean"] < 0.5 / 255, model


def test_torture():
    numbers = last_line("torture", "--kills", "2", "--seed", "88")  # after 3 and after 1 more
    assert numbers["kills"] == numbers["resumed"] == 2 and numbers["half_written"] == 0
    assert 0 <= numbers["updates_lost_max"] <= numbers["save_every"] and numbers["updates"] > 0


def test_overhead(numbers_of):
    numbers = numbers_of["overhead"]
    beside = {name for name, seconds in numbers.items() if name.startswith("seconds_") and seconds > 0}
    assert beside >= {f"seconds_{name}" for name in ("finite", "saves", "LoRAs", "cards", "previews", "training")}
    assert 0 < numbers["overhead"] < numbers["overhead_with_previews"]


def test_queues(comfyui):
    """As many as show what a queue leaves behind; the limit of 50 MB is for 200 of them."""
    numbers = last_line("queues", "--queues", "8", "--warm", "5")
    assert numbers["updates"] == 8 and numbers["files_elsewhere"] == []
    assert numbers["ram_growth"] < 50e6
