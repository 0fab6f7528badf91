"""The judge: a small conv net that says what a picture shows and in which look. No training ever sees it.

It learns from other drawings than those the toy models learn from (`other_pictures.py`), raw and decoded by the toy
VAE, from pictures of any saturation, and from mush, which is neither photo nor render but garbage.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pictures import pixel_saturation
from .models import load, weights_path
from .pictures import BACKGROUNDS, BLACK, COLOURS, SHAPES, SIZE, Scene

LOOK_CLASSES = ("photo", "render", "garbage")
HEADS = dict(look=LOOK_CLASSES, shape=SHAPES, colour=COLOURS, background=BACKGROUNDS)


class Residual(nn.Module):
    """A 3x3 convolution that halves the picture, then one with a skip around it."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(after)
        self.conv = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor):
        x = F.silu(self.down_norm(self.down(x)))
        return F.silu(x + self.conv_norm(self.conv(x)))


class Judge(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> one row of logits per head, dict of (B, classes)."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 112)):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.stages = nn.Sequential(*(Residual(a, b) for a, b in zip(widths, widths[1:])))
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(names)) for name, names in HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stages(F.silu(self.stem(images * 2 - 1)))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, images: Tensor):
        """A `Verdict` on pictures (B, 3, H, W) in [0, 1], of any size."""
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        logits = [self(part) for part in images.float().split(128)]
        return Verdict(**{name: torch.cat([part[name] for part in logits]).softmax(1) for name in HEADS})


@dataclass
class Verdict:
    """Probabilities: look (B, 3) photo/render/garbage, shape (B, 4), colour (B, 6), background (B, 4)."""

    look: Tensor
    shape: Tensor
    colour: Tensor
    background: Tensor

    def names(self, head: str):
        """The likeliest class of one head for each picture, as words: `verdict.names("look")`."""
        return [HEADS[head][i] for i in getattr(self, head).argmax(1).tolist()]

    def is_photo(self):
        """(B,) bool: judged a photo."""
        return self.look.argmax(1) == LOOK_CLASSES.index("photo")

    def meets(self, scenes: list[Scene]):
        """(B,) bool: shape, colour and background are all as in `scenes`, and the picture is not garbage."""
        met = self.look.argmax(1) != LOOK_CLASSES.index("garbage")
        for head in ("shape", "colour", "background"):
            wanted = torch.tensor([HEADS[head].index(getattr(scene, head)) for scene in scenes])
            met = met & (getattr(self, head).argmax(1) == wanted)
        return met


def load_judge(path: Path | None = None):
    """The shipped judge, in eval mode."""
    return load(Judge(), path or weights_path("judge"))


def diversity(images: Tensor, scenes: list[Scene]):
    """Mean squared pixel distance between pictures of the same scene, averaged over scenes seen at least twice.

    images (B, 3, H, W) in [0, 1]; 0 if no scene is seen twice.
    """
    groups: dict[Scene, list[int]] = {}
    for i, scene in enumerate(scenes):
        groups.setdefault(scene, []).append(i)
    distances = []
    for members in groups.values():
        if len(members) > 1:
            flat = images[members].flatten(1)
            # The mean over pairs i != j of |a - b|^2 is twice the unbiased variance.
            distances.append(2 * flat.var(0).mean())
    return float(torch.stack(distances).mean()) if distances else 0.0


def measure(images: Tensor, scenes: list[Scene], judge: Judge | None = None):
    """Judge pictures (B, 3, H, W) in [0, 1] against what they should show, B scenes.

    Returns shares in [0, 1] and means: `realism` (strict: judged a photo, and the caption met), `photo` (judged a
    photo), `garbage`, `alignment` (caption met: shape, colour and background right, not garbage), `saturation`
    (mean (max - min) / max), and `diversity` (see there; give each scene several times).
    """
    verdict = (judge or load_judge()).judge(images)
    photo = verdict.is_photo()
    met = verdict.meets(scenes)
    garbage = verdict.look.argmax(1) == LOOK_CLASSES.index("garbage")
    shares = dict(realism=photo & met, photo=photo, garbage=garbage, alignment=met)
    numbers = {name: float(hits.float().mean()) for name, hits in shares.items()}
    return dict(
        **numbers,
        saturation=float(pixel_saturation(images, BLACK).mean((1, 2)).mean()),
        diversity=diversity(images, scenes),
    )
