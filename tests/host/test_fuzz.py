"""A small dose of `python -m bench.fuzz`, whose own is 1,000 inputs, and that it finds what it is for."""

import json
import subprocess
import sys

from find_host import ROOT


def last_line(*command):
    done = subprocess.run(
        [str(part) for part in (sys.executable, *command)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


# All families in one process, as most of each one's time goes to its imports.
EACH = """
import json, random, sys, tempfile
from pathlib import Path
from bench import fuzz

failures = []
with tempfile.TemporaryDirectory() as work:
    places = {name: Path(work, name) for name in sys.argv[2:]}
    for place in places.values():
        place.mkdir()
    attempts = {name: fuzz.family(name, place / "host") for name, place in places.items()}
    fuzz.limit_memory()
    for number in range(int(sys.argv[1])):
        for name, attempt in attempts.items():
            failure = fuzz.failure_of(attempt, random.Random(f"{name} 0 {number}"), places[name])
            failures += [(name, number, failure)] if failure else []
    print(json.dumps(failures))
"""


def test_a_dose_of_each_family(comfyui):
    families = ("runs", "prompts", "rewards", "photos", "loras", "nodes")
    assert last_line("-c", EACH, 6, *families)[0] == []


ENDINGS = """
import json, random, tempfile
from pathlib import Path
from bench import fuzz
from bench.fuzz_attempt import Found
from srpo_core.data.prompt_text import parse_prompts

def stranger(draw, folder):
    (folder.parent / "stranger").touch()

def not_finite(draw, folder):
    raise Found("not finite")

endings = {
    "well": lambda draw, folder: None,
    "a sentence": lambda draw, folder: parse_prompts("{a"),
    "raw": lambda draw, folder: parse_prompts(3),
    "another's ValueError": lambda draw, folder: int("x"),
    "memory": lambda draw, folder: bytearray(2**34),
    "stranger": stranger,
    "not finite": not_finite,
}
fuzz.limit_memory()
with tempfile.TemporaryDirectory() as work:
    print(json.dumps([name for name, end in endings.items() if fuzz.failure_of(end, random.Random(), Path(work))]))
"""

CHILDREN = """
import json, sys, tempfile
from pathlib import Path
from bench import fuzz

CHILD = '''
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for number in range(int(sys.argv[1]), int(sys.argv[1]) + int(sys.argv[2])):
    print(json.dumps({"begun": number}), flush=True)
    if number == 1: time.sleep(60)
    if number == 3: sys.exit("gone")
    print(json.dumps({"ended": number, "failure": "raw" if number == 4 else None}), flush=True)
'''
fuzz.SECONDS = 5.0
command = lambda inputs: [sys.executable, "-c", CHILD, str(inputs.start), str(len(inputs))]
fuzz.child_command = lambda name, inputs, seed, work, keep: command(inputs)
with tempfile.TemporaryDirectory() as keep:
    result = fuzz.fuzz(["runs"], 6, 1e9, seed=0, keep=Path(keep))
    print(json.dumps([result.inputs, [failure.split(":")[0] for failure in result.failures]]))
"""


def test_what_counts_as_a_failure():
    assert last_line("-c", ENDINGS)[0] == ["raw", "another's ValueError", "memory", "stranger", "not finite"]


def test_children_that_hang_or_die_cost_one_input():
    assert last_line("-c", CHILDREN)[0] == [6, ["runs-1", "runs-3", "runs-4"]]
