"""A small dose of `python -m bench.fuzz`, and that it finds what it is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fuzz(*arguments, keep) -> tuple[dict, str]:
    command = [sys.executable, "-m", "bench.fuzz", "--keep", keep, *arguments]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_files(tmp_path):
    numbers, said = fuzz("--inputs", 90, "--families", "rewards", "prompts", "runs", keep=tmp_path)
    assert numbers == {"inputs": 90, "failures": 0}, said


def test_values_of_nodes_photos_and_loras(comfyui, tmp_path):
    numbers, said = fuzz("--inputs", 45, "--families", "nodes", "photos", "loras", keep=tmp_path)
    assert numbers == {"inputs": 45, "failures": 0}, said


BROKEN = """
import os, time
from pathlib import Path
from bench import fuzz, fuzz_files

def broken(work):
    work.mkdir()
    def attempt(draw, folder):
        (folder / "seed").write_text(str(draw.random()))
        number = len(list(work.iterdir()))
        (work / str(number)).touch()
        if number == 0: int("x")
        if number == 1: bytearray(2**34)
        if number == 2: (folder.parent / "stranger").touch()
        if number == 3: time.sleep(60)
        if number == 4: os._exit(1)
        if number == 5: fuzz_files.parse_prompts("{a")
    return attempt

fuzz_files.prompts, fuzz.SECONDS = broken, {"prompts": 2.0}
fuzz.main()
"""


def test_it_finds_what_it_is_for(tmp_path):
    """A raw exception, the memory, a stranger, a hang, a death; a sentence is none of them."""
    (tmp_path / "broken_fuzz.py").write_text(BROKEN)
    sys_path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", "import broken_fuzz", "--inputs", "7", "--families", "prompts", "--keep", "kept"]
    script = BROKEN.replace('[sys.executable, "-m", "bench.fuzz"', "")
    assert script
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | sys_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
