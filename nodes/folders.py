"""Where runs, their LoRAs and caches live in ComfyUI's output folder, and which names runs may have."""

import re
from pathlib import Path

import folder_paths

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def run_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "srpo" / name


def cache_folder(of: str) -> Path:
    """Where what need not be computed twice is kept; the dot keeps it apart from runs, whose names have none first."""
    return Path(folder_paths.get_output_directory()) / "srpo" / f".{of}"


def lora_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "loras" / "srpo" / name


def model_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "diffusion_models" / "srpo" / name


def check_run_name(name: str):
    """Raises ValueError unless the name can be a folder's on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", name) or name[-1] in " .":
        raise ValueError(
            f'"{name}" can\'t be a run name: use up to 64 letters, digits, spaces, dots, dashes or underscores, '
            "beginning with a letter or digit. It becomes a folder in output/srpo."
        )
    if name.split(".")[0].lower() in RESERVED:
        raise ValueError(f'"{name}" can\'t be a run name: Windows keeps it for itself. Choose another.')
