"""Queue the toy again and again on a real ComfyUI, and see what grows.

    python -m bench.queues --queues 200

Each queue trains one update of one run with SRPO Train. The last line is one JSON object: `ram_growth`, bytes that the
host's process holds more than after the first ten queues (or --warm); `files_elsewhere`, files that came to be outside
the run's folders and the kept prompts after these.
"""

import argparse
import json
import tempfile
from pathlib import Path

from find_host import find_host
from host_server import HostServer
from workflow import workflow_1

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


def measure(queues: int, warm: int, base: Path) -> dict:
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI to measure on: set COMFYUI_PATH.")
    with HostServer(host, base, ("--disable-api-nodes",)) as server:
        memory = []
        for number in range(queues):
            server.run(workflow())
            memory.append(server.memory())
            if number + 1 == warm:
                files = elsewhere(base)
        grown = sorted(elsewhere(base) - files)
        updates = json.loads((base / OURS[0] / "run.json").read_text())["updates"]
    return {
        "queues": queues,
        "updates": updates,
        "ram_after_first": memory[warm - 1],
        "ram_growth": memory[-1] - memory[warm - 1],
        "files_elsewhere": grown,
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.queues", description=__doc__.splitlines()[0])
    parser.add_argument("--queues", type=int, default=200)
    parser.add_argument("--warm", type=int, default=10, help="first queues, by which ComfyUI warms up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="srpo-queues-") as folder:
        print(json.dumps(measure(options.queues, min(options.warm, options.queues), Path(folder))))


if __name__ == "__main__":
    main()
