"""Photos as a dataset: encoded once, their latents on disk, a batch of them read when it is asked for."""

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import file_digest, read_safetensors, write_whole
from .photos import Photo, Size, Unusable, check_covers, cropped, nearest_shape, readable, upright_size

log = logging.getLogger(__name__)

VERSION = "1"  # of how pixels are prepared: another one encodes everything anew
Shape = tuple[int, int, int]  # (C, H, W) of a latent


@dataclass(frozen=True)
class Encoded:
    """A photo whose latent, of this shape, is in this file."""

    caption: str
    file: Path
    shape: Shape


@dataclass(frozen=True)
class Store:
    """Latents on disk, named after what they were made of: the picture's bytes, its size, the VAE.

    encode: images (1, 3, H, W) in [0, 1] to latents (1, C, h, w). identity: of the VAE; another one, other files.
    """

    folder: Path
    encode: Callable[[Tensor], Tensor]
    identity: str

    def file(self, picture: Path, size: Size) -> Path:
        parts = (VERSION, file_digest(picture, "blake2b"), f"{size[0]}x{size[1]}", self.identity)
        return self.folder / f"{hashlib.blake2b(' '.join(parts).encode(), digest_size=16).hexdigest()}.safetensors"

    def encoded(self, photo: Photo, sizes: list[Size]) -> Encoded:
        """The photo at the one of `sizes` that fits its shape. Raises Unusable."""
        actual = upright_size(photo.file)
        size = nearest_shape(actual, sizes)
        check_covers(actual, size)
        file = self.file(photo.file, size)
        shape = stored_shape(file)
        if shape is None:
            latent = self.encode(cropped(photo.file, size))[0].float().cpu().contiguous()
            if not latent.isfinite().all():
                raise Unusable("comes out of the VAE with numbers that are not finite; try the VAE in fp32 or bf16")
            write_whole(file, lambda path: save_file({"latent": latent}, path))
            shape = tuple(latent.shape)
        return Encoded(photo.caption, file, shape)


def stored_shape(file: Path) -> Shape | None:
    """Of the latent in this file; None without a file, or if it is not a whole one."""
    try:
        with safe_open(file, "pt") as stored:
            return tuple(stored.get_slice("latent").get_shape())
    except (OSError, SafetensorError):
        return None


def encode_all(
    photos: Iterable[Photo], sizes: list[Size], store: Store, on_photo: Callable[[], Any] = lambda: None
) -> tuple[list[Encoded], list[str]]:
    """Encode what is not in the store yet, one photo in memory at a time; `on_photo` is called before each.

    Returns also which photos are left out and why, and warns of them. Raises ValueError if none is left.
    """
    done, left_out = [], []
    for photo in photos:
        on_photo()
        try:
            done.append(store.encoded(photo, sizes))
        except Unusable as why:
            left_out.append(f"{readable(photo.file)} {why}.")
    if not done:
        raise ValueError("None of the photos can be used:\n" + shortened(left_out))
    if left_out:
        log.warning("%d of %d photos are left out:\n%s", len(left_out), len(done) + len(left_out), "\n".join(left_out))
    return done, left_out


def shortened(lines: list[str], most: int = 10) -> str:
    rest = [f"... and {len(lines) - most} more."] if len(lines) > most else []
    return "\n".join(lines[:most] + rest)


def _as_stored(latents: Tensor) -> Tensor:
    return latents


@dataclass(frozen=True)
class Photos:
    """Photos as a dataset (see `loop.Dataset`): their captions are its prompts.

    captions: those of the photos, encoded, as a dataset of their own.
    to_model: from the VAE's latents to the flow model's space.
    """

    photos: list[Encoded]
    captions: Any
    to_model: Callable[[Tensor], Tensor] = _as_stored

    @cached_property
    def prompts(self) -> list[str]:
        return [photo.caption for photo in self.photos]

    @property
    def content(self) -> list[tuple[str, str]]:
        """What makes this dataset another: captions, and the latents' names, which follow from the pictures."""
        return [(photo.caption, photo.file.name) for photo in self.photos]

    def cond(self, indices: list[int]) -> Any:
        return self.captions.cond(indices)

    def cond_shape(self, index: int) -> Hashable:
        return self.captions.cond_shape(index)

    def shape(self, index: int) -> Shape:
        return self.photos[index].shape

    def latents(self, indices: list[int]) -> Tensor:
        """(B, C, H, W) float32 on the CPU: the clean latents x0 of photos that share a shape, read from disk."""
        return self.to_model(torch.stack([self._read(self.photos[i].file) for i in indices]))

    def _read(self, file: Path) -> Tensor:
        try:
            return read_safetensors(file)[0]["latent"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(
                f"The latent of a photo, {file}, can't be read any more ({error}): clear ComfyUI's execution cache or "
                "restart it, and queue again. The photo is then encoded anew."
            ) from error
