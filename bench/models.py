"""How far each family of models that the host loads can be trained: docs/models.md, from tests/host/test_models.py.

    python -m bench.models

Takes about three minutes. Exits with what the tests exit with; the table is written either way, if they ran.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from find_host import ROOT, find_host

PAGE = ROOT / "docs/models.md"
CHECKS = {
    "gradient": "Gradient",
    "value": "As sampled",
    "round trip": "LoRA file",
    "update": "Update",
}
HEAD = """# Models

Every family of models that ComfyUI {host} loads and that makes pictures, as a small network of the host's own class \
with random weights (torch {torch}, CPU). `python -m bench.models` measures it and writes this page.

- **Gradient**: of the trained step, at a LoRA of rank 2 on all blocks, in fp64. How far it is off finite differences \
of the host's own samples along three random directions, relatively.
- **As sampled**: how far what is trained on is off what the host samples, relatively, in fp32.
- **LoRA file**: how far the model with the file loaded by ComfyUI's own loader is off the one that was trained. No \
tensor of a file is left out.
- **Update**: one update by the objects of SRPO Train, after which the model without the adapter still says the same, \
to the bit.

- **Decoded by**: the VAE, whose gradient is looked at below; "not checked" where it was not made small.

{whole} of {all} families are whole. It is the arithmetic that is measured here: whether training makes a published \
model of the family better is another question.
"""
DECODERS = """
## VAEs

Small ones with random weights by the host's own loader, in fp64: how far visible pictures are off what the host \
decodes, and the gradient at the latent off finite differences along a random direction, relatively. Before a run \
trains with a VAE, its gradient is held against its pictures once more, and a wrong one is refused.
"""
TWINS = """
## Against diffusers

The trained step on the same weights in diffusers' class, written out there in ordinary code, in fp64: how far the \
recovered latents of both branches are off, the gradient of a LoRA on all blocks, and its worst tensor alone, \
relatively. Tables of times and places are in fp32 in both. FLUX.1 is held against diffusers and peft from the noise \
to the reward's gradient, in fp32, to 1e-5, by `tests/host/test_host_gradients.py`.
"""


def measure() -> tuple[dict, int]:
    """What the tests found, and what they exit with."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        tests = [sys.executable, "-m", "pytest", "-q", "tests/host/test_models.py"]
        done = subprocess.run(tests, cwd=ROOT, env=os.environ | {"MODELS_TABLE": str(table)}, check=False)
        return json.loads(table.read_text("utf-8")), done.returncode


def host_version() -> str:
    text = (find_host() / "comfyui_version.py").read_text("utf-8")
    return text.split('"')[1]


def cell(check: str, found: float | str) -> str:
    if isinstance(found, str):
        return "no"
    return "yes" if check == "update" and found == 0 else f"{found:.0e}"


def row(family: dict, decoders: dict) -> list[str]:
    found = family["found"]
    obstacle = next((value for value in found.values() if isinstance(value, str)), "").replace("|", "\\|")
    latent = " x ".join(map(str, family["latent"]))
    decoder = family["vae"] if family["vae"] in decoders else "not checked"
    return [family["name"], family["kind"], latent, *(cell(c, found[c]) for c in CHECKS), decoder, obstacle]


def rows_of(columns: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [" | ".join(["", *line, ""]).strip() for line in lines]


def numbers_of(found: dict[str, dict], *columns: str) -> list[list[str]]:
    """A row for each: its name, its class, and how far these are off."""
    return [
        [name, each["class"].rsplit(".", 1)[-1], *(f"{each[c]:.0e}" for c in columns)] for name, each in found.items()
    ]


def page(table: dict) -> str:
    families = table["families"]
    columns = ["Family", "Class in ComfyUI", "Latent here", *CHECKS.values(), "Decoded by", "What stands in the way"]
    lines = [
        HEAD.format(host=host_version(), torch=version("torch"), whole=len(table["whole"]), all=len(families)),
        *rows_of(columns, (row(family, table["decoders"]) for family in families)),
        DECODERS,
        *rows_of(
            ["VAE", "Class in ComfyUI", "Pictures", "Gradient"], numbers_of(table["decoders"], "pictures", "gradient")
        ),
        TWINS,
        *rows_of(
            ["Model", "Class in diffusers", "Recovered", "Gradient", "Worst tensor"],
            numbers_of(table["diffusers"], "recovered", "gradient", "worst"),
        ),
        "\n## Left out\n",
        *(f"- {name}: {why}." for name, why in table["left out"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    table, code = measure()
    PAGE.write_text(page(table), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
