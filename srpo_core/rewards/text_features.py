"""Text features, computed once for each text: in memory, and on disk for the next start."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import write_whole

log = logging.getLogger(__name__)

KEY = 16  # bytes, of the digest of a text


class TextFeatures:
    """Normalised features (D,) by text. file: where they are kept; None keeps them in memory alone.

    A file that can't be read is made anew.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._known: dict[bytes, Tensor] = {}
        if file and file.exists():
            try:
                self._known = read(file)
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                log.warning("The stored text features in %s can't be read (%s) and are made anew.", file, error)

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, texts: list[str]) -> list[str]:
        """Those of the texts that are not known, each once."""
        return [text for text in dict.fromkeys(texts) if key(text) not in self._known]

    @torch.inference_mode(False)  # clones made in it are inference tensors, which autograd can't save
    def add(self, texts: list[str], features: Tensor):
        """features: (len(texts), D), normalised."""
        rows = features.detach().clone().float().cpu()
        self._known |= {key(text): row for text, row in zip(texts, rows)}
        if self.file:
            self._save()

    def get(self, texts: list[str]) -> Tensor:
        """(len(texts), D) float32, on the CPU. Raises KeyError for a text that is missing."""
        return torch.stack([self._known[key(text)] for text in texts])

    def _save(self):
        keys = torch.tensor([list(name) for name in self._known], dtype=torch.uint8)
        stored = {"keys": keys, "features": torch.stack(list(self._known.values()))}
        write_whole(self.file, lambda path: save_file(stored, path))


def read(file: Path) -> dict[bytes, Tensor]:
    """Copies: a file that is mapped can't be replaced on Windows. Raises ValueError for what `_save` never wrote."""
    with safe_open(file, "pt") as stored:
        keys, features = (stored.get_tensor(name).clone() for name in ("keys", "features"))
    fitting = keys.dtype == torch.uint8 and features.dtype == torch.float32 and keys.ndim == features.ndim == 2
    if not fitting or len(keys) != len(features) or keys.shape[1] != KEY or not features.isfinite().all():
        raise ValueError(f"{tuple(keys.shape)} keys for {tuple(features.shape)} features")
    return dict(zip((bytes(row) for row in keys.tolist()), features.unbind()))


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()
