"""The benchmark at the toy's size: it says what its readers look for, and the loose truths hold on any machine."""

import subprocess
import sys

import pytest
from test_bench import ROOT, last_line

TOY = ("--toy", "--device", "cpu", "--size", "64x64", "--base", "fp32", "--steps", "2", "--repeats", "3")


@pytest.fixture(scope="module")
def measured(comfyui, tmp_path_factory) -> dict:
    picture = tmp_path_factory.mktemp("bench") / "roofline.png"
    numbers = last_line("flux", *TOY, "--picture", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    return numbers


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


@pytest.mark.parametrize(
    "options, said",
    [
        (("--streamed", "8", "--device", "cpu", "--no-naive"), "--streamed needs --device cuda"),
        (("--streamed", "8"), "add --no-naive"),
        (("--base", "int8"), "add --no-naive"),
        (("--picture", "seconds.png", "--repeats", "0"), "it needs --repeats"),
    ],
)
def test_what_cannot_be_measured_together(options, said):
    result = subprocess.run([sys.executable, "-m", "bench.flux", *options], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and said in result.stderr


@pytest.mark.parametrize("base", ["fp8", "int8", "nvfp4"])
def test_a_small_base_takes_what_is_estimated(comfyui, base):
    options = ("--base", base, "--mode", "offline", "--no-naive", "--repeats", "1")
    numbers = last_line("flux", "--toy", "--device", "cpu", "--size", "64x64", *options)
    assert numbers["base"] == base and numbers["estimate_error"] < 0.1
