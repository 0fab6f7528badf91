"""The pictures that a run leaves in its folder: its cards, and each sample in its own size."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import open as open_image
from PIL.PngImagePlugin import PngInfo

from ..srpo_core.pictures import to_picture
from ..srpo_core.run.run import Run

log = logging.getLogger(__name__)


class SampleFiles:
    """Writes into a run's folder "samples". workflow: see `host.workflow.workflow_of`; it goes into each sample."""

    def __init__(self, run: Run, workflow: Mapping[str, Any]):
        self.run = run
        self.workflow = workflow

    def write_card(self, card: Image):
        self._write(f"{self.run.updates:06d}", card)

    def newest_card(self) -> Image | None:
        """The last card of the run, as it was when it last trained; None where there is none that can be read."""
        cards = sorted((self.run.folder / "samples").glob("[0-9]" * 6 + ".png"))
        try:
            return open_image(cards[-1]).convert("RGB") if cards else None
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            log.warning("The picture %s can't be shown: %s", cards[-1], error)
            return None

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
