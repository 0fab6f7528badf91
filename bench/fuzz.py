"""Feed hostile inputs to whatever reads what people have, and see that each ends well or in a sentence.

    python -m bench.fuzz --inputs 1000

Damaged run folders, prompt texts, reward files and, where a ComfyUI is found, photos, start LoRAs and values of node
inputs, drawn from --seed. Each is tried in a child process of bounded time and memory. It fails by any exception that
is no sentence of this pack, by hanging, by taking the memory, by numbers that are not finite, and by a file written
where none belongs. Failing inputs are kept in --keep. The last line is one JSON object: `inputs`, `failures`.
"""

import argparse
import json
import linecache
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from find_host import ROOT, find_host

from .fuzz_attempt import Attempt

OURS = (ROOT / "srpo_core", ROOT / "nodes")
CORE = {"runs": "fuzz_files", "prompts": "fuzz_files", "rewards": "fuzz_rewards"}  # families by their module
HOST = dict.fromkeys(("photos", "loras", "nodes"), "fuzz_nodes")
MEMORY = 4 * 2**30  # bytes that an input may take beside what its family holds
SETUP = 300.0  # seconds until a child is ready
SECONDS = 120.0  # for an input: a busy machine is slow, and a hang is for ever
BATCH = 50  # inputs of a family in a row


def family(name: str, work: Path) -> Attempt:
    module = import_module(f"bench.{(CORE | HOST)[name]}")
    return getattr(module, name)(work)


# The child


def child(name: str, inputs: range, seed: int, *, work: Path, keep: Path):
    """Try inputs of these numbers one after the other; a line of JSON before and after each on the standard output."""
    answers = sys.stdout  # libraries print
    sys.stdout = sys.stderr

    def say(**what: Any):
        print(json.dumps(what), file=answers, flush=True)

    shutil.rmtree(work / "host", ignore_errors=True)  # of a child that died
    attempt = family(name, work / "host")
    limit_memory()
    say(ready=True)
    for number in inputs:
        say(begun=number)
        failure = failure_of(attempt, random.Random(f"{name} {seed} {number}"), work)
        if failure:
            keep_input(keep / f"{name}-{number}", failure, work)
        say(ended=number, failure=failure)


def failure_of(attempt: Attempt, draw: random.Random, work: Path) -> str | None:
    """What is wrong with how an input ended; None if nothing is."""
    folder = work / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        attempt(draw, folder)
    except Exception as error:
        if not is_sentence(error):
            return traceback.format_exc()[-4000:]
    if strangers := {path.name for path in work.iterdir()} - {"input", "host"}:
        for name in strangers:
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).unlink(missing_ok=True)
        return f"written outside: {strangers}"
    return None


def is_sentence(error: Exception) -> bool:
    """Whether this pack itself raised it, on purpose, for people to read."""
    if type(error) not in (ValueError, RuntimeError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(folder) for folder in OURS)
    return ours and linecache.getline(last.filename, last.lineno).lstrip().startswith("raise ")


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def keep_input(folder: Path, failure: str, work: Path):
    """Copy the input that lies in `work`, and say beside it what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if (work / "input").exists():
        subprocess.run(["cp", "-a", str(work / "input"), str(folder)], check=False)  # pipes and links as they are
    (folder / "failure.txt").write_text(failure, "utf-8", "backslashreplace")


# The parent


@dataclass
class Fuzz:
    """What was tried and what failed; failing inputs are copied to `keep`."""

    seed: int
    keep: Path
    inputs: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, name: str, inputs: range, work: Path):
        """Try the inputs of these numbers of a family, in as many child processes as that takes."""
        while inputs:
            with Child(child_command(name, inputs, self.seed, work=work, keep=self.keep)) as process:
                inputs = self.follow(process, name, inputs, work)

    def follow(self, process: "Child", name: str, inputs: range, work: Path) -> range:
        """Hear a child until it ends; returns the inputs that were not tried."""
        if process.hear(SETUP) is None:
            raise RuntimeError(f"The family {name} could not be set up:\n{process.errors()}")
        for number in inputs:
            process.hear(SETUP)
            answer = process.hear(SECONDS)
            self.inputs += 1
            failure = answer["failure"] if answer else f"hung, or took the memory:\n{process.errors()}"
            if answer is None:
                keep_input(self.keep / f"{name}-{number}", failure, work)
            if failure:
                self.failures.append(f"{name}-{number}: {failure.strip().splitlines()[-1]}")
            if answer is None:
                return range(number + 1, inputs.stop)
        return range(0)


def child_command(name: str, inputs: range, seed: int, *, work: Path, keep: Path) -> list[str]:
    command = [sys.executable, "-m", "bench.fuzz", "--child", name, "--first", inputs.start, "--inputs", len(inputs)]
    return [str(part) for part in (*command, "--seed", seed, "--work", work, "--keep", keep.absolute())]


class Child:
    """A child process, its answers in a queue."""

    def __init__(self, command: list[str]):
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.answers: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def hear(self, seconds: float) -> dict | None:
        """The next answer; None when the child ended, or says nothing for so long."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def errors(self) -> str:
        self.log.seek(0)
        return self.log.read()[-3000:]

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: Any):
        self.process.kill()
        self.process.wait()


def batches(names: list[str], inputs: int) -> Iterator[tuple[str, range]]:
    """Families in turn, and the numbers of the inputs of each, until so many were given out."""
    left = inputs
    round_ = 0
    size = min(BATCH, -(-inputs // len(names)))
    while left > 0:
        for name in names:
            count = min(size, left)
            if count > 0:
                yield name, range(round_ * size, round_ * size + count)
            left -= count
        round_ += 1


def fuzz(names: list[str], inputs: int, seconds: float, *, seed: int, keep: Path) -> Fuzz:
    """Try so many inputs, or as many as fit into the time."""
    result = Fuzz(seed, keep)
    began = time.monotonic()
    for name, numbers in batches(names, inputs):
        if time.monotonic() - began > seconds:
            break
        with tempfile.TemporaryDirectory(prefix="srpo-fuzz-", ignore_cleanup_errors=True) as work:
            result.run(name, numbers, Path(work))
    return result


def main():
    families = [*CORE, *(HOST if find_host() else ())]
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="where failing inputs go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        numbers = range(options.first, options.first + options.inputs)
        return child(options.child, numbers, options.seed, work=options.work, keep=options.keep)
    result = fuzz(options.families, options.inputs, options.seconds, seed=options.seed, keep=options.keep)
    for failure in result.failures:
        print(failure)
    print(json.dumps({"inputs": result.inputs, "failures": len(result.failures)}))


if __name__ == "__main__":
    main()
