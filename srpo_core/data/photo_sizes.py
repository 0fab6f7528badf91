"""Photos and the sizes that they are cropped to, found from their headers alone."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .captions import readable
from .photo_files import Photo
from .photo_pixels import Size, UnusablePhoto, check_covers, nearest_shape, upright_size

log = logging.getLogger(__name__)

SAMPLE = 2**16  # bytes at the beginning, in the middle and at the end of a picture, by which it is told from others


@dataclass(frozen=True)
class Sized:
    """A photo and the size that it is cropped to. content: a digest that another picture in its place changes.

    reference: the photo's, likewise, at the size of its own shape.
    """

    photo: Photo
    size: Size
    content: str
    reference: "Sized | None" = None

    def contents(self) -> list[tuple[str, Size]]:
        """What it is and its size, and its reference's."""
        return [(self.content, self.size), *(self.reference.contents() if self.reference else [])]


def sample_digest(picture: Path) -> str:
    """A digest of a picture's length and of some of its bytes, so that a folder of large ones takes a moment."""
    with picture.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        state = hashlib.blake2b(str(length).encode(), digest_size=16)
        for start in (0, max(0, (length - SAMPLE) // 2), max(0, length - SAMPLE)):
            file.seek(start)
            state.update(file.read(SAMPLE))
    return state.hexdigest()


def measured(photo: Photo, sizes: list[Size]) -> Sized:
    """The photo at the one of `sizes` that fits its shape; reads its header. Raises UnusablePhoto."""
    if photo.unusable:
        raise UnusablePhoto(photo.unusable)
    actual = upright_size(photo.file)
    size = nearest_shape(actual, sizes)
    check_covers(actual, size)
    reference = measured_reference(photo.reference, sizes) if photo.reference else None
    try:
        return Sized(photo, size, sample_digest(photo.file), reference)
    except OSError as error:
        raise UnusablePhoto(f"can't be read ({error})") from error


def measured_reference(reference: Photo, sizes: list[Size]) -> Sized:
    """Likewise; what is raised says that it is the photo's reference."""
    with names_reference(reference):
        return measured(reference, sizes)


@contextmanager
def names_reference(reference: Photo) -> Iterator[None]:
    """What is wrong inside is wrong with a photo's reference."""
    try:
        yield
    except UnusablePhoto as why:
        raise UnusablePhoto(f"has a reference, {readable(reference.file.name)}, that {why}") from why


def measure_all(
    photos: Iterable[Photo], sizes: list[Size], on_photo: Callable[[], Any] = lambda: None
) -> tuple[list[Sized], list[str]]:
    """The photos that can be used, so far as their headers tell; `on_photo` is called before each.

    Returns also which photos are left out and why, and warns of them. Raises ValueError if none is left.
    """
    usable = []
    left_out = []
    for photo in photos:
        on_photo()
        try:
            usable.append(measured(photo, sizes))
        except UnusablePhoto as why:
            left_out.append(f"{readable(photo.file)} {why}.")
    if not usable:
        raise ValueError("None of the photos can be used:\n" + first_lines(left_out))
    if left_out:
        total = len(left_out) + len(usable)
        log.warning("%d of %d photos are left out:\n%s", len(left_out), total, "\n".join(left_out))
    return usable, left_out


def first_lines(lines: list[str], most: int = 10) -> str:
    rest = [f"... and {len(lines) - most} more."] if len(lines) > most else []
    return "\n".join(lines[:most] + rest)
