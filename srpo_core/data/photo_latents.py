"""Photos as a dataset: encoded once, when they are drawn; their latents on disk, read when a batch asks for them."""

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..algorithm.protocols import Shape
from ..files import file_digest, read_safetensors, write_whole
from .captions import readable
from .photo_files import Photo
from .photo_pixels import Size, UnusablePhoto, check_covers, cropped, nearest_shape, upright_size

log = logging.getLogger(__name__)

VERSION = "2"  # of how pixels are prepared: another one encodes everything anew
SAMPLE = 2**16  # bytes at the beginning, in the middle and at the end of a picture, by which it is told from others
MOST_UNUSABLE = 10  # photos in a row that turn out broken: then something else is wrong


@dataclass(frozen=True)
class Sized:
    """A photo and the size that it is cropped to. content: a digest that another picture in its place changes."""

    photo: Photo
    size: Size
    content: str


@dataclass(frozen=True)
class Store:
    """Latents on disk, named after what they were made of: the picture's bytes, its size, the VAE.

    encode: images (1, 3, H, W) in [0, 1] to latents (1, C, h, w). identity: the VAE's; another one, other files.
    """

    folder: Path
    encode: Callable[[Tensor], Tensor]
    identity: str

    def file(self, picture: Path, size: Size) -> Path:
        parts = (VERSION, file_digest(picture, "blake2b"), f"{size[0]}x{size[1]}", self.identity)
        return self.folder / f"{hashlib.blake2b(' '.join(parts).encode(), digest_size=16).hexdigest()}.safetensors"

    def encoded(self, sized: Sized) -> tuple[Path, Shape]:
        """The file of a photo's latent, and its shape; made if it is not there. Raises UnusablePhoto."""
        try:
            file = self.file(sized.photo.file, sized.size)
        except OSError as error:
            raise UnusablePhoto(f"can't be read ({error})") from error
        shape = stored_shape(file)
        if shape is None:
            latent = self.encode(cropped(sized.photo.file, sized.size))[0].float().cpu().contiguous()
            if not latent.isfinite().all():
                raise UnusablePhoto(
                    "comes out of the VAE with numbers that are not finite; try the VAE in fp32 or bf16"
                )
            write_whole(file, lambda path: save_file({"latent": latent}, path))
            shape = tuple(latent.shape)
        return file, shape


def stored_shape(file: Path) -> Shape | None:
    """The shape of the latent in this file; None without a file, or if it is not a whole one."""
    try:
        with safe_open(file, "pt") as stored:
            return tuple(stored.get_slice("latent").get_shape())
    except (OSError, SafetensorError):
        return None


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
    try:
        return Sized(photo, size, sample_digest(photo.file))
    except OSError as error:
        raise UnusablePhoto(f"can't be read ({error})") from error


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


class Latents:
    """The latents of photos by their index, encoded when they are asked for.

    A photo that turns out broken only then can't leave the list any more: the order of draws follows from its length.
    The next one that is whole stands in for it, the same on every start.
    on_photo: called before each photo that `prepare` looks at, with how many it has looked at and of how many; what
    it raises ends that, and what is encoded is kept.
    """

    def __init__(
        self, photos: Sequence[Sized], store: Store, on_photo: Callable[[int, int], Any] = lambda done, total: None
    ):
        self.photos = photos
        self.store = store
        self.on_photo = on_photo
        self.captions = [sized.photo.caption for sized in photos]  # of a broken one, its stand-in's
        self.left_out: dict[int, str] = {}  # what is said of those that turned out broken
        self._known: dict[int, tuple[Path, Shape]] = {}

    def prepare(self, indices: Iterable[int]):
        """Encode those that are not yet. Raises ValueError as `stand_in` does."""
        unknown = [i for i in dict.fromkeys(indices) if i not in self._known and i not in self.left_out]
        for done, index in enumerate(unknown):
            self.on_photo(done, len(unknown))
            self.stand_in(index)

    def stand_in(self, index: int) -> int:
        """Whose latent is taken for photo `index`: its own, but for a broken one.

        Raises ValueError where MOST_UNUSABLE in a row, or all, can't be used.
        """
        tried = [(index + step) % len(self.photos) for step in range(min(MOST_UNUSABLE, len(self.photos)))]
        for other in tried:
            if self._usable(other):
                self.captions[index] = self.photos[other].photo.caption
                return other
        raise ValueError("None of these photos can be used:\n" + "\n".join(self.left_out[other] for other in tried))

    def shape(self, index: int) -> Shape:
        """(C, H, W)."""
        return self._known[self.stand_in(index)][1]

    def __getitem__(self, index: int) -> Tensor:
        """(C, H, W) float32 on the CPU."""
        file, _ = self._known[self.stand_in(index)]
        try:
            return read_safetensors(file)[0]["latent"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(
                f"The latent of a photo, {file}, can't be read any more ({error}): clear ComfyUI's execution cache or "
                "restart it, and queue again. The photo is then encoded anew."
            ) from error

    def _usable(self, index: int) -> bool:
        """Whether this photo has a latent, which is made if it was not asked for before."""
        if index not in self._known and index not in self.left_out:
            try:
                self._known[index] = self.store.encoded(self.photos[index])
            except UnusablePhoto as why:
                self.left_out[index] = f"{readable(self.photos[index].photo.file)} {why}."
                log.warning("%s The next photo is taken in its place.", self.left_out[index])
        return index in self._known


def _as_stored(latents: Tensor) -> Tensor:
    return latents


@dataclass(frozen=True)
class Photos:
    """Photos as a dataset (see `protocols.PhotoDataset`): their captions are its prompts.

    caption_dataset: the photos' captions, encoded, as a dataset of their own.
    to_model: takes the VAE's latents to the flow model's space.
    """

    encoded: Latents
    caption_dataset: Any
    to_model: Callable[[Tensor], Tensor] = _as_stored

    @property
    def prompts(self) -> list[str]:
        return self.encoded.captions

    def content(self) -> list[tuple[str, str, Size]]:
        """What makes this dataset another: captions, pictures and their sizes; whatever is encoded so far."""
        return [(sized.photo.caption, sized.content, sized.size) for sized in self.encoded.photos]

    def prepare(self, indices: Iterable[int]):
        """Encode the photos, and then the captions, that are not yet."""
        indices = list(dict.fromkeys(indices))
        self.encoded.prepare(indices)
        self.caption_dataset.prepare([self.encoded.stand_in(index) for index in indices])

    def cond(self, indices: list[int]) -> Any:
        return self.caption_dataset.cond([self.encoded.stand_in(index) for index in indices])

    def cond_shape(self, index: int) -> Hashable:
        return self.caption_dataset.cond_shape(self.encoded.stand_in(index))

    def shape(self, index: int) -> Shape:
        return self.encoded.shape(index)

    def latents(self, indices: list[int]) -> Tensor:
        """(B, C, H, W) float32 on the CPU: the clean latents x0 of photos that share a shape, read from disk."""
        return self.to_model(torch.stack([self.encoded[index] for index in indices]))
