"""Photos as a dataset: encoded once, when they are drawn; their latents on disk, read when a batch asks for them."""

import hashlib
import logging
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
from .photo_pixels import Size, UnusablePhoto, cropped
from .photo_sizes import Sized, names_reference

log = logging.getLogger(__name__)

VERSION = "2"  # of how pixels are prepared: another one encodes everything anew
REFERENCES = "reference_latents"  # what ComfyUI's conditionings call them: a list of (B, C, H, W)
MOST_UNUSABLE = 10  # photos in a row that turn out broken: then something else is wrong


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
        self._references: dict[int, tuple[Path, Shape]] = {}  # of those that have one

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
        return self._read(self._known[self.stand_in(index)][0])

    def reference_shape(self, index: int) -> Shape | None:
        """(C, H, W) of its reference; None for a photo without one."""
        return self._references.get(self.stand_in(index), (None, None))[1]

    def reference(self, index: int) -> Tensor:
        """(C, H, W) float32 on the CPU: its reference's latent."""
        return self._read(self._references[self.stand_in(index)][0])

    def reference_pixels(self, index: int) -> Tensor:
        """(1, 3, H, W) in [0, 1]: the reference itself."""
        reference = self.photos[self.stand_in(index)].reference
        assert reference, "asked for of photos that have references"
        return cropped(reference.photo.file, reference.size)

    def _read(self, file: Path) -> Tensor:
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
                self._encode(index, self.photos[index])
            except UnusablePhoto as why:
                self.left_out[index] = f"{readable(self.photos[index].photo.file)} {why}."
                log.warning("%s The next photo is taken in its place.", self.left_out[index])
        return index in self._known

    def _encode(self, index: int, sized: Sized):
        """It and its reference, which must both be whole."""
        known = self.store.encoded(sized)
        if sized.reference:
            with names_reference(sized.reference.photo):
                self._references[index] = self.store.encoded(sized.reference)
        self._known[index] = known


def _as_stored(latents: Tensor) -> Tensor:
    return latents


@dataclass(frozen=True)
class Photos:
    """Photos as a dataset (see `protocols.PhotoDataset`): their captions are its prompts.

    Where photos have references, conditionings hold their latents, one beside each caption.

    caption_dataset: the photos' captions, encoded, as a dataset of their own.
    to_model: takes the VAE's latents to the flow model's space.
    """

    encoded: Latents
    caption_dataset: Any
    to_model: Callable[[Tensor], Tensor] = _as_stored

    @property
    def prompts(self) -> list[str]:
        return self.encoded.captions

    @property
    def has_references(self) -> bool:
        return self.encoded.photos[0].reference is not None

    def content(self) -> list[tuple]:
        """What makes this dataset another: captions, pictures and their sizes; whatever is encoded so far."""
        return [(sized.photo.caption, *sum(sized.contents(), ())) for sized in self.encoded.photos]

    def prepare(self, indices: Iterable[int]):
        """Encode the photos, and then the captions, that are not yet."""
        indices = list(dict.fromkeys(indices))
        self.encoded.prepare(indices)
        self.caption_dataset.prepare([self.encoded.stand_in(index) for index in indices])

    def cond(self, indices: list[int]) -> Any:
        cond = self.captions(indices)
        if not self.has_references:
            return cond
        references = [torch.stack([self.encoded.reference(index) for index in indices])]
        return [[context, extra | {REFERENCES: references}] for context, extra in cond]

    def captions(self, indices: list[int]) -> Any:
        """The conditioning of their captions alone."""
        return self.caption_dataset.cond([self.encoded.stand_in(index) for index in indices])

    def cond_shape(self, index: int) -> Hashable:
        shape = self.caption_dataset.cond_shape(self.encoded.stand_in(index))
        return (shape, self.encoded.reference_shape(index)) if self.has_references else shape

    def shape(self, index: int) -> Shape:
        return self.encoded.shape(index)

    def latents(self, indices: list[int]) -> Tensor:
        """(B, C, H, W) float32 on the CPU: the clean latents x0 of photos that share a shape, read from disk."""
        return self.to_model(torch.stack([self.encoded[index] for index in indices]))
