"""Where runs, their LoRAs and caches live in ComfyUI's output folder, and which names runs may have.

A path inside is made of a name here alone, and here every name is checked.
"""

import re
from pathlib import Path

import folder_paths

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def run_folder(name: str) -> Path:
    """Raises ValueError as `check_run_name`, and where the folder is a link that leads elsewhere; so do the others."""
    return _inside(name, "srpo")


def lora_folder(name: str) -> Path:
    return _inside(name, "loras", "srpo")


def model_folder(name: str) -> Path:
    return _inside(name, "diffusion_models", "srpo")


def cache_folder(of: str) -> Path:
    """Where what need not be computed twice is kept; the dot keeps it apart from runs, whose names have none first."""
    check_run_name(of)
    return Path(folder_paths.get_output_directory()) / "srpo" / f".{of}"


def _inside(name: str, *place: str) -> Path:
    check_run_name(name)
    parent = Path(folder_paths.get_output_directory()).joinpath(*place)
    folder = parent / name
    if folder.is_symlink() or folder.resolve().parent != parent.resolve():  # the second is how Windows' junctions show
        raise ValueError(
            f"{folder} is a link to another place, where a run would write then: move the folder itself there, or "
            "choose another run name. To keep all runs on another disk, start ComfyUI with --output-directory."
        )
    return folder


def check_run_name(name: str):
    """Raises ValueError unless the name can be a folder's on every system."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", name) or name[-1] in " .":
        raise ValueError(
            f'"{str(name)[:200]}" can\'t be a run name: use up to 64 letters, digits, spaces, dots, dashes or '
            "underscores, beginning with a letter or digit. It becomes a folder in output/srpo."
        )
    if name.split(".")[0].rstrip().lower() in RESERVED:
        raise ValueError(f'"{name}" can\'t be a run name: Windows keeps it for itself. Choose another.')


def check_not_taken(name: str):
    """Raises ValueError where a run's name differs from this one in capitals alone."""
    folder = run_folder(name)
    if not folder.parent.is_dir():
        return
    there = [other.name for other in folder.parent.iterdir()]
    if name not in there and (same := [other for other in there if other.lower() == name.lower()]):
        raise ValueError(
            f'There is a run "{same[0]}" already, and on Windows and macOS "{name}" would be the same folder: write it '
            "as it is there, or choose another run name."
        )
