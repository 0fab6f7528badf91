"""Kill a toy run again and again, with kill -9, and see that it goes on.

    python -m bench.torture --kills 30

Each time a process trains the toy (diffusers' FLUX) in one folder until it is killed at a random moment. The last
line is one JSON object: `kills`; `resumed`, how many of the processes after a kill went on where the folder said;
`updates_lost_max`, finished updates that were not on disk; `half_written`, files that could not be read.
"""

import argparse
import contextlib
import json
import multiprocessing
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from safetensors import SafetensorError, safe_open

from srpo_core.run.folder import saved_updates
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings

SETTINGS = Settings(save_every=3, snapshot_every=6, keep_snapshots=2, ema=0.9)
MOST = 10.0  # updates that a process finishes before it is killed


# Where processes can be forked, one that is never killed has made the imports for all, which take longer than training.
FORKED = "forkserver" in multiprocessing.get_all_start_methods()
PROCESSES = multiprocessing.get_context("forkserver" if FORKED else "spawn")
if FORKED:
    PROCESSES.set_forkserver_preload(["srpo_core.toy.world", "srpo_core.run.loop"])


def child(folder: Path, told: Connection):
    """Train for ever; tell the update that it begins after, then each that is finished."""
    import torch

    from srpo_core.algorithm.objective import Objective
    from srpo_core.algorithm.terms import Term
    from srpo_core.run.draws import Batching
    from srpo_core.run.loop import train
    from srpo_core.run.training import Training
    from srpo_core.toy.world import toy_world

    torch.set_num_threads(1)
    flow, decoder, reward, dataset = toy_world(["a red circle on grass", "a blue square on sand"], rank=4, steps=2)
    run = Run(folder, flow.parameters, SETTINGS)
    told.send(run.updates)
    training = Training(
        flow=flow,
        decoder=decoder,
        terms=[Term(reward=reward, objective=Objective())],
        dataset=dataset,
        batching=Batching(shape=(16, 8, 8)),
    )
    train(run, training, 10_000, lambda metrics: told.send(metrics["update"]))


def train_and_kill(folder: Path, updates: float) -> tuple[int, int]:
    """The update a process began after, and the last one it finished, when it is killed `updates` into training.

    Of a broken number of updates, the part is that of the time that the last whole one took.
    """
    heard, told = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=child, args=(folder, told))
    process.start()
    told.close()  # here, so that it ends with the process
    began = heard.recv()
    finished = [began]
    since = time.monotonic()
    took = 0.0
    while len(finished) <= int(updates):
        finished.append(heard.recv())
        took = time.monotonic() - since
        since = time.monotonic()
    time.sleep(updates % 1 * took)
    process.kill()
    process.join()
    with contextlib.suppress(EOFError):
        while True:
            finished.append(heard.recv())
    return began, finished[-1]


def half_written(folder: Path) -> int:
    """How many files can't be read; those on their way (.tmp) are nobody's yet."""
    spoilt = 0
    for file in (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".tmp"):
        try:
            read(file)
        except (SafetensorError, ValueError, EOFError):
            spoilt += 1
    return spoilt


def read(file: Path):
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():
                tensors.get_tensor(key)
    elif file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".jsonl":
        for line in file.read_text().splitlines():
            json.loads(line)


def torture(kills: int, folder: Path, seed: int = 0) -> dict:
    """What `kills` kills at random moments did to one run."""
    moments = random.Random(seed)
    resumed = 0
    lost = []
    spoilt = 0
    saved = 0
    for _ in range(kills):
        began, finished = train_and_kill(folder, moments.uniform(0, MOST))
        resumed += began == saved
        saved = saved_updates(folder)
        lost.append(finished - saved)
        spoilt += half_written(folder)
    return {
        "kills": kills,
        "resumed": resumed,
        "updates_lost_max": max(lost),
        "half_written": spoilt,
        "updates": saved,
        "save_every": SETTINGS.save_every,
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="srpo-torture-") as folder:
        result = torture(options.kills, Path(folder) / "run", options.seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
