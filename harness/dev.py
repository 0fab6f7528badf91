"""The project's commands on any system: `python harness/dev.py demo`, or test, test-newest, lint, clean.

All but the last make their own environment in .venv, with what the ComfyUI on this machine asks for, if there is one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
OLDEST = (3, 10)  # of Python
INSTALL = ("-m", "pip", "install", "--no-input", "--quiet", "--no-compile")  # most of its modules are never imported
CONSTRAINTS = "tests/constraints.txt"
LISTS = {
    "demo": ("requirements.txt", "demo/requirements.txt"),
    "test": ("requirements.txt", "demo/requirements.txt", "tests/requirements.txt"),
}
# The packages of ComfyUI's that people update beside it.
NEWEST = ("comfyui-frontend-package", "comfy-kitchen", "comfy-aimdo")
MADE = (".venv", ".newest", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", "demo_out", "build")
# glibc gives large blocks back at once and takes them anew for each tensor: half of a toy update was page faults.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


def run(tool, arguments, **environment):
    """Run a tool of the environment in the project's folder; where it fails, end as it did."""
    ended = subprocess.run([BIN / tool, *arguments], cwd=ROOT, env=os.environ | environment)
    if ended.returncode:
        sys.exit(ended.returncode)


def lists(what):
    """The lists of requirements: ours, and that of the ComfyUI that is found. Ends with a sentence for a wrong one."""
    from find_host import find_host

    try:
        host = find_host()
    except ValueError as error:
        sys.exit(str(error))
    return [ROOT / name for name in LISTS[what]] + ([host / "requirements.txt"] if host else [])


def stamp(what):
    """Named after what is installed, so that a changed list, or another ComfyUI, installs again."""
    content = b"".join(path.read_bytes() for path in [ROOT / CONSTRAINTS, *lists(what)])
    return VENV / f"ready-{what}-{hashlib.sha256(content).hexdigest()[:12]}"


def make_environment(what):
    """The environment for the demo, or the larger one for tests, which does for the demo, too."""
    if stamp(what).exists() or stamp("test").exists():
        return
    if subprocess.run([sys.executable, "-m", "venv", VENV], stdout=subprocess.PIPE).returncode:
        sys.exit(f"{sys.executable} can't make an environment: on Debian and Ubuntu install python3-venv.")
    wanted = [word for path in lists(what) for word in ("-r", path)]
    run("python", [*INSTALL, "-c", CONSTRAINTS, *wanted])
    stamp(what).touch()


def demo():
    make_environment("demo")
    run("python", ["demo"])


def lint():
    make_environment("test")
    run("ruff", ["check"])
    run("ruff", ["format", "--check"])
    run("mypy", ["srpo_core"])


def pytest(*paths, **environment):
    """Two files of tests at a time, each on one thread: toy models gain nothing from a second."""
    options = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    run("pytest", [*paths, *options], OMP_NUM_THREADS="1", **environment)


def test():
    lint()
    pytest("tests")


def test_newest():
    """What is on the host once more, with the newest of those packages."""
    make_environment("test")
    newest = ROOT / ".newest"
    shutil.rmtree(newest, ignore_errors=True)
    run("python", [*INSTALL, "--no-deps", "--target", newest, *NEWEST])
    pytest("tests/host", PYTHONPATH=str(newest))


def clean():
    for path in [*(ROOT / name for name in MADE), *ROOT.glob("*.egg-info")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in list(ROOT.rglob("__pycache__")):
        shutil.rmtree(path, ignore_errors=True)


COMMANDS = {"demo": demo, "test": test, "test-newest": test_newest, "lint": lint, "clean": clean}


def main():
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"This is Python {version}, and 3.10 or newer is needed: install one, or name it, PYTHON=python3.11.")
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"Say one of: {', '.join(COMMANDS)}.")
    os.environ.update(MEMORY)
    # Each of the many processes would compile ComfyUI's modules anew where this is set, as it is in containers.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    COMMANDS[sys.argv[1]]()


if __name__ == "__main__":
    main()
