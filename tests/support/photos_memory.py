"""Prints how many MiB encoding a folder of photos, and reading it back, adds to the memory of this process."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "harness"))

import import_core  # noqa: F401
import torch
from memory_probe import resident

from srpo_core.data.photo_files import scan_folder
from srpo_core.data.photo_latents import Latents, Photos, Store
from srpo_core.data.photo_pixels import sizes_of_area
from srpo_core.data.photo_sizes import measure_all


def main(folder: Path):
    before = resident("VmHWM")
    store = Store(folder / "store", lambda image: torch.zeros(1, 8, image.shape[2] // 4, image.shape[3] // 4), "a VAE")
    photos, _ = measure_all(scan_folder(folder).photos, sizes_of_area(256, 256, 16))
    dataset = Photos(Latents(photos, store), None)
    for i in range(len(photos)):
        dataset.latents([i])
    print((resident("VmHWM") - before) / 2**20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
