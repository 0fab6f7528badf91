"""The commands of a clone: `make` and `python harness/dev.py` end in one true sentence where they can't begin."""

import os
import shutil
import subprocess
import sys

import dev
import pytest
from find_host import ROOT


@pytest.fixture
def clone(tmp_path):
    """A clone, in a folder with a space, whose environment is a pretended one."""
    clone = tmp_path / "a clone"
    for name in (
        "Makefile",
        "requirements.txt",
        "harness",
        "demo/requirements.txt",
        "tests/requirements.txt",
        dev.CONSTRAINTS,
    ):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, clone / name)
    return clone


def host(folder, requirements="torch\n"):
    folder.mkdir(parents=True)
    for name in ("main.py", "comfyui_version.py"):
        (folder / name).touch()
    (folder / "requirements.txt").write_text(requirements)
    return folder


def say(clone, *command, **environment):
    """What the command ends with, and what it says."""
    # A make that runs these tests would say where it is.
    around = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(command, cwd=clone, env=around | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def make():
    return shutil.which("make") or pytest.skip("no make")


def test_a_wrong_path_of_comfyui_is_one_sentence(clone, tmp_path, make):
    wrong = f"COMFYUI_PATH is '{tmp_path}', and there is no ComfyUI (main.py): correct it or unset it\n"
    assert say(clone, sys.executable, "harness/dev.py", "demo", COMFYUI_PATH=str(tmp_path)) == (1, wrong)
    code, said = say(clone, make, "demo", f"PYTHON={sys.executable}", COMFYUI_PATH=str(tmp_path))
    assert code and said.startswith(wrong)


def test_a_python_that_is_missing_or_too_old_is_one_sentence(clone, make):
    code, said = say(clone, make, "demo", "PYTHON=")
    assert code and said.startswith("No Python was found: install 3.10 or newer, or name one")
    old = "import sys, runpy; sys.version_info = (3, 8, 20); sys.argv = ['dev.py', 'demo']; "
    code, said = say(clone, sys.executable, "-c", old + "runpy.run_path('harness/dev.py', run_name='__main__')")
    assert code == 1 and said.startswith("This is Python 3.8.20, and 3.10 or newer is needed") and said.count("\n") == 1


@pytest.fixture
def ran(clone, tmp_path, monkeypatch):
    """The commands that are run in the clone, where nothing is installed and nothing fails."""
    commands = []

    def run(command, **_):
        commands.append([str(word) for word in command])
        (dev.VENV).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dev, "ROOT", clone)
    monkeypatch.setattr(dev, "VENV", clone / ".venv")
    monkeypatch.setattr(dev, "BIN", clone / ".venv/bin")
    monkeypatch.setattr(dev.subprocess, "run", run)
    monkeypatch.setenv("COMFYUI_PATH", str(host(tmp_path / "a host")))
    return commands


def test_an_environment_is_made_once_for_its_lists(clone, tmp_path, ran):
    for _ in range(2):
        dev.demo()
    venv, pip, *demos = ran
    assert venv[1:3] == ["-m", "venv"] and demos == [[str(clone / ".venv/bin/python"), "demo"]] * 2
    named = [word for before, word in zip(pip, pip[1:]) if before == "-r"]
    assert named == [str(clone / n) for n in dev.LISTS["demo"]] + [str(tmp_path / "a host/requirements.txt")]
    (tmp_path / "a host/requirements.txt").write_text("torch\nnumpy\n")
    dev.demo()
    assert len(ran) == 4 + 3


def test_the_environment_of_the_tests_does_for_the_demo(ran):
    dev.lint()
    before = len(ran)
    dev.demo()
    assert len(ran) == before + 1
