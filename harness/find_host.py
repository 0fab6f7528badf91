"""Where ComfyUI is on this machine. `python harness/find_host.py` prints the path, or nothing."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the pack's folder


def is_host(folder: Path):
    """Whether `folder` is an installation of ComfyUI."""
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def find_host():
    """The first ComfyUI of: `COMFYUI_PATH`, the one this pack sits in, `~/ComfyUI`, `~/comfy/ComfyUI`; or None.

    Raises ValueError if `COMFYUI_PATH` names something else.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named and not is_host(Path(named).expanduser()):
        raise ValueError(f"COMFYUI_PATH is {named!r}, and there is no ComfyUI (main.py): correct it or unset it")
    places = [named] if named else [ROOT.parent.parent, "~/ComfyUI", "~/comfy/ComfyUI"]
    folders = (Path(place).expanduser().resolve() for place in places)
    return next((folder for folder in folders if is_host(folder)), None)


if __name__ == "__main__":
    sys.stdout.write(f"{find_host() or ''}\n")
