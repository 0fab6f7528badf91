"""The pictures that a run leaves in its folder: its cards, and each sample in its own size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ..srpo_core.pictures import to_picture
from ..srpo_core.run.run import Run


class SampleFiles:
    """Writes into a run's folder "samples". workflow: see `host.workflow.workflow_of`; it goes into each sample."""

    def __init__(self, run: Run, workflow: Mapping[str, Any]):
        self.run = run
        self.workflow = workflow

    def write_card(self, card: Image):
        self._write(f"{self.run.updates:06d}", card)

    def write_samples(self, when: str, images: torch.Tensor, about: list[dict[str, Any]]):
        """Pictures (N, H, W, 3) in [0, 1] as <when>_01.png and so on. about: of which prompt and noise each is."""
        for number, (image, one) in enumerate(zip(images, about), 1):
            texts = self.workflow and self.workflow | {"srpo": {"sample": when, **one}}
            self._write(f"{when}_{number:02d}", to_picture(image), pnginfo=png_info(texts), compress_level=4)

    def _write(self, name: str, picture: Image, **options: Any):
        file: Path = self.run.folder / "samples" / f"{name}.png"
        self.run.write_aside(file, partial(picture.save, format="PNG", **options))


def png_info(texts: Mapping[str, Any]) -> PngInfo:
    """The values as the host's Save Image writes them."""
    info = PngInfo()
    for name, value in texts.items():
        info.add_text(name, json.dumps(value))
    return info
