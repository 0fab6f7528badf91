"""What `pip install` makes of the project: `srpo_core` with the toy, for work without ComfyUI."""

import os
import shutil
import subprocess
import sys

import pytest
from find_host import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "srpo_core")
OFFLINE = """
from srpo_core.toy.world import toy_world
import srpo_core, torch
flow, decoder, reward, dataset = toy_world(["a red circle on grass"], steps=1)
latent = flow.rollout(torch.zeros(1, 16, 8, 8), dataset.cond([0]), 0)
print(srpo_core.__file__, reward.score(decoder.decode(latent).value, ["Photo. a red circle"]).shape)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the project was installed into, from a wheel, with nothing of its dependencies."""
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built by setuptools 77 or newer")
    project = tmp_path_factory.mktemp("project")  # a build leaves folders beside the sources
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, project / name) if source.is_dir() else shutil.copyfile(source, project / name)
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, project], check=True)
    return target


def test_a_wheel_has_every_file_of_the_toy(installed):
    toy = ROOT / "srpo_core/toy/weights"
    files = {path.relative_to(toy) for path in toy.rglob("*") if path.is_file()}
    assert len(files) == 6
    assert {
        f.relative_to(installed / "srpo_core/toy/weights") for f in installed.rglob("weights/**/*") if f.is_file()
    } == files


def test_an_installed_toy_world_works_without_a_network(installed, tmp_path):
    pytest.importorskip("diffusers")
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0].startswith(str(installed))
