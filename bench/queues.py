"""Queue the toy again and again on a real ComfyUI, and see what grows.

    python -m bench.queues --queues 200

Each queue trains one update of one run with SRPO Train. The last line is one JSON object: `ram_growth`, bytes that the
host's process holds more than after the first ten queues; `files_elsewhere`, files that came to be outside the run's
folders and the kept prompts after the first ten.
"""

import argparse
import json
import tempfile
from pathlib import Path

from find_host import find_host
from host_server import HostServer
from workflow import workflow_1

WARM = 10
RUN = "queues"
OURS = (f"output/srpo/{RUN}", f"output/loras/srpo/{RUN}")
PASSING = ("temp", "host.log", "user")  # the host's own: pictures of previews, its log
KEPT = "output/srpo/.prompts/"  # encoded prompts, one file for each that was drawn


def workflow() -> dict:
    """Workflow 1 with one update of one prompt."""
    prompt, inputs = workflow_1()
    inputs["SRPO_Trainer"]["run_name"] = RUN
    inputs["SRPO_Train"] |= {"updates": 1, "batch": 1, "memory.at_once": 1}
    inputs["SRPO_Rollouts"]["steps"] = 2
    inputs["SRPO_Train"]["previews"] = ["previews", 0]
    sampler = {"sampler_name": "euler", "scheduler": "simple", "steps": 2}
    shown = {"every": 5, "count": 1, "seeds": "", "width": 0, "height": 0, **sampler}
    prompt["previews"] = {"class_type": "SRPO_Previews", "inputs": shown}
    return {key: entry for key, entry in prompt.items() if entry["class_type"] != "LossGraphNode"}


def elsewhere(base: Path) -> set[str]:
    """Files that are neither a run's nor the host's own."""
    files = (file.relative_to(base).as_posix() for file in base.rglob("*") if file.is_file())
    return {file for file in files if not file.startswith((*OURS, *PASSING, KEPT)) and "__pycache__" not in file}


def measure(queues: int, base: Path) -> dict:
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI to measure on: set COMFYUI_PATH.")
    with HostServer(host, base, ("--disable-api-nodes",)) as server:
        memory = []
        for number in range(queues):
            server.run(workflow())
            memory.append(server.memory())
            if number + 1 == min(WARM, queues):
                files = elsewhere(base)
        grown = sorted(elsewhere(base) - files)
        updates = json.loads((base / OURS[0] / "run.json").read_text())["updates"]
    return {
        "queues": queues,
        "updates": updates,
        "ram_after_first": memory[min(WARM, queues) - 1],
        "ram_growth": memory[-1] - memory[min(WARM, queues) - 1],
        "files_elsewhere": grown,
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.queues", description=__doc__.splitlines()[0])
    parser.add_argument("--queues", type=int, default=200)
    with tempfile.TemporaryDirectory(prefix="srpo-queues-") as folder:
        print(json.dumps(measure(parser.parse_args().queues, Path(folder))))


if __name__ == "__main__":
    main()
