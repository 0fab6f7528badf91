"""The benchmark at the toy's size: it says what its readers look for, and the loose truths hold on any machine.

All command lines run in one process, as most of each one's time goes to its imports.
"""

import json
import subprocess
import sys

import pytest
from find_host import ROOT

TOY = ("--toy", "--device", "cpu", "--size", "64x64")
TIMED = (*TOY, "--base", "fp32", "--steps", "2", "--repeats", "3")
COUNTED = (*TOY, "--mode", "offline", "--no-naive", "--repeats", "0")
BASES = ("fp8", "int8", "nvfp4")
REFUSED = {
    ("--streamed", "8", "--device", "cpu", "--no-naive"): "--streamed needs --device cuda",
    ("--streamed", "8"): "add --no-naive",
    ("--base", "int8"): "add --no-naive",
    ("--picture", "seconds.png", "--repeats", "0"): "it needs --repeats",
}
EACH = """
import contextlib, io, json, sys
from bench import flux

for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    code = 0
    out = io.StringIO()
    error = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            flux.main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), error.getvalue()]))
"""


def each(*commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """What `python -m bench.flux` leaves of each command line: its code, and what it printed and complained of."""
    process = [sys.executable, "-c", EACH, json.dumps(commands)]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def numbers(comfyui, tmp_path_factory) -> dict[str, dict]:
    """The last line of a measurement with all there is, and of those of small bases; by the base."""
    picture = tmp_path_factory.mktemp("bench") / "roofline.png"
    commands = [(*TIMED, "--picture", str(picture)), *((*COUNTED, "--base", base) for base in BASES)]
    found = each(*commands)
    assert [code for code, _, _ in found] == [0] * len(commands)
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(out.splitlines()[-1]) for _, out, _ in found]
    return {line["base"]: line for line in lines}


@pytest.fixture(scope="module")
def measured(numbers) -> dict:
    return numbers["fp32"]


def test_what_is_compared_computes_the_same(measured):
    assert measured["gradient_to_naive"] < 1e-5


def test_checkpointing_keeps_a_fraction_of_what_plain_autograd_keeps(measured):
    assert 0 < measured["activations_to_naive"] < 0.5
    assert measured["kept_bytes"]["naive"] > 1e6


def test_seconds_of_an_update_and_its_stages(measured):
    stages = measured["stage_seconds"]
    assert stages.keys() == {"rollout", "branch", "comparison", "decode", "reward", "optimizer"}
    assert all(seconds > 0 for seconds in stages.values())
    assert 1.5 < measured["branch_per_forward"] < 10
    assert 0.5 < measured["time_to_naive"] < 4
    assert measured["update_seconds"] == measured["seconds"]["update"]


def test_memory_of_the_stages_and_its_estimate(measured):
    assert measured["peak_bytes"] == max(measured["stage_bytes"].values()) > 5e6
    assert measured["estimate"].keys() == measured["stage_bytes"].keys() - {"comparison"}
    assert measured["estimate_error"] < 0.5


def test_operations_of_a_stage(measured):
    """A FLUX does two operations for each weight and token, but for the modulation, which is of one token."""
    floors = measured["floors"]
    assert floors["rollout"]["flops"] == 2 * floors["comparison"]["flops"]
    assert 4 < floors["branch"]["flops"] / floors["comparison"]["flops"] <= 7
    assert all(0 < floor["seconds"] < 10 for name, floor in floors.items() if name != "device")


@pytest.fixture(scope="module")
def refusals() -> dict[tuple[str, ...], tuple[int, str, str]]:
    return dict(zip(REFUSED, each(*REFUSED)))


@pytest.mark.parametrize("options", REFUSED, ids=map(" ".join, REFUSED))
def test_what_cannot_be_measured_together(refusals, options):
    code, _, error = refusals[options]
    assert code == 2 and REFUSED[options] in error


@pytest.mark.parametrize("base", BASES)
def test_a_small_base_takes_what_is_estimated(numbers, base):
    assert numbers[base]["base"] == base and numbers[base]["estimate_error"] < 0.1
