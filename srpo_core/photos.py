"""A folder of photos: their captions, the size that fits each one's shape, and the pixels cropped to it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # what a file is, its content says; Pillow runs programs for others
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
LONGEST = 2.0  # long side / short side of the sizes that photos are cropped to

Size = tuple[int, int]  # width, height in pixels


class Unusable(Exception):
    """Why a photo is left out; reads on from its file's name."""


@dataclass(frozen=True)
class Photo:
    file: Path
    caption: str


def scan(folder: Path, default_caption: str = "") -> list[Photo]:
    """The pictures in a folder and in those inside it, by name; hidden ones are passed over. None is opened.

    A caption is in the .txt beside the picture; where there is none, or an empty one, it is `default_caption`, or,
    if that is empty too, the file's name. Raises ValueError without a picture, and for a caption that is not UTF-8.
    """
    files = set(walk(folder))
    pictures = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    if not pictures:
        raise ValueError(f"There is no picture in {folder}: put some there ({', '.join(SUFFIXES)}).")
    captions = (caption_in(file.with_suffix(".txt")) if file.with_suffix(".txt") in files else "" for file in pictures)
    return [Photo(file, caption or default_caption.strip() or named(file)) for file, caption in zip(pictures, captions)]


def walk(folder: Path) -> Iterator[Path]:
    """All files that are not hidden and lie in the folder: no links out of it, none to other folders."""
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(place) / name for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file() and file.resolve().is_relative_to(root))


def caption_in(file: Path) -> str:
    """One line. Raises ValueError for a .txt that is not UTF-8."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16, too, where all letters are English
        raise ValueError(f"The caption {readable(file)} is not UTF-8: save it as UTF-8.")
    return " ".join(text.split())


def named(picture: Path) -> str:
    """What a picture's name says."""
    return " ".join(readable(picture.stem).replace("_", " ").replace("-", " ").split())


def readable(name: str | Path) -> str:
    """A file's name as text that can be written: names from other systems' archives need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def sizes_of_area(width: int, height: int, multiple: int) -> list[Size]:
    """Sizes of about width x height pixels, one for each shape, with sides that are multiples of `multiple`.

    From 1:2 to 2:1, or to the shape that is asked for, where that is longer.
    """
    area = width * height
    longest = max(LONGEST, max(width, height) / min(width, height))
    sides = range(multiple, math.ceil(math.sqrt(area * longest)) + multiple, multiple)
    found = {(side, max(1, round(area / side / multiple)) * multiple) for side in sides}
    found |= {(b, a) for a, b in found}
    return sorted(size for size in found if max(size) / min(size) <= longest)


def nearest_shape(size: Size, sizes: list[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to that of `size`."""
    return min(sizes, key=lambda other: abs(math.log(other[0] * size[1] / (other[1] * size[0]))))


def upright_size(file: Path) -> Size:
    """Of the picture as it is looked at. Reads the header alone. Raises Unusable for what is no picture."""
    with opened(file) as image:
        sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
        return image.size[::-1] if sideways else image.size


def cropped(file: Path, size: Size) -> Tensor:
    """(1, 3, H, W) in [0, 1]: turned upright, made smaller until it just covers `size`, its middle cut out.

    Of an animation the first frame; transparency is ignored. Raises Unusable for a broken picture.
    """
    with opened(file) as image:
        upright = as_rgb(ImageOps.exif_transpose(image))
        pixels = np.array(ImageOps.fit(upright, size, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        image = image.convert("I").point(lambda value: value * (1 / 257))
    return image.convert("RGB")


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture, not yet decoded; what goes wrong inside is Unusable."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise Unusable(f"is no picture of these kinds: {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow has a dozen kinds for broken files
        raise Unusable(f"can't be read ({error})") from error


def check_covers(size: Size, wanted: Size):
    """Raises Unusable if a picture of `size` would have to be enlarged."""
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise Unusable(f"is {size[0]}x{size[1]}, too small for {wanted[0]}x{wanted[1]}, the size of its shape")
