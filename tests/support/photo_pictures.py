"""Pictures for tests of photos, and the sizes that they get."""

from pathlib import Path

import numpy as np
from PIL import Image

from srpo_core.data.photo_pixels import (
    sizes_of_area,
)

SIZES = sizes_of_area(64, 64, 16)


def picture(file: Path, width: int = 96, height: int = 96, color=(200, 100, 50), **save) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(file, **save)
    return file


def thirds(width: int, height: int) -> Image.Image:
    """Red, green, blue from left to right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 255
    return Image.fromarray(pixels)
