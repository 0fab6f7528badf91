"""Training adds little to the memory that inference takes: there is no second model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a process from Linux' /proc"
)
def test_extra_memory_to_start_training(comfyui):
    probe = Path(__file__).parents[1] / "support/memory_probe.py"
    answer = subprocess.run([sys.executable, probe], capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-2000:]
    measured = json.loads(answer.stdout.splitlines()[-1])
    assert measured["model"] > 0.9e9
    assert measured["extra"] < 0.15 * measured["model"], measured
