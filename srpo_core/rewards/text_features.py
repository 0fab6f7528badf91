"""Text features, computed once for each text: in memory, and on disk for the next start."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import read_safetensors, write_whole

log = logging.getLogger(__name__)

KEY_BYTES = 16


class TextFeatures:
    """Normalised features (D,) by text. file: where they are kept; None keeps them in memory alone.

    A file that can't be read is made anew.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._known: dict[bytes, Tensor] = {}
        if file and file.exists():
            try:
                self._known = _read(file)
            except (SafetensorError, ValueError, OSError) as error:
                log.warning("The stored text features in %s can't be read (%s) and are made anew.", file, error)

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, texts: list[str]) -> list[str]:
        """The texts that are not known, each once."""
        return [text for text in dict.fromkeys(texts) if key(text) not in self._known]

    @torch.inference_mode(False)  # clones made in it are inference tensors, which autograd can't save
    def add(self, texts: list[str], features: Tensor):
        """features: (len(texts), D), normalised."""
        rows = features.detach().clone().float().cpu()
        self._known |= {key(text): row for text, row in zip(texts, rows)}
        if self.file:
            self._save(self.file)

    def get(self, texts: list[str]) -> Tensor:
        """(len(texts), D) float32, on the CPU. Raises KeyError for a text that is missing."""
        return torch.stack([self._known[key(text)] for text in texts])

    def _save(self, file: Path):
        keys = torch.tensor([list(name) for name in self._known], dtype=torch.uint8)
        stored = {"keys": keys, "features": torch.stack(list(self._known.values()))}
        try:
            write_whole(file, lambda path: save_file(stored, path))
        except RuntimeError as error:  # in memory they are, so no more is lost than time at the next start
            log.warning("Text features are not kept for the next start: %s", error)


def _read(file: Path) -> dict[bytes, Tensor]:
    stored, _ = read_safetensors(file)  # not mapped: the file is written again with the next text
    keys = stored.get("keys")
    features = stored.get("features")
    if keys is None or features is None or keys.dtype != torch.uint8 or keys.shape[1:] != (KEY_BYTES,):
        raise ValueError("it holds something else")
    if features.ndim != 2 or features.dtype != torch.float32 or len(features) != len(keys):
        raise ValueError("it holds something else")
    if not features.isfinite().all():
        raise ValueError("it has numbers that are not finite")
    return dict(zip(map(bytes, keys.tolist()), features.unbind()))


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
