"""A white sheet that text, boxes, lines and pictures are drawn on, with pictures and text made to fit, and fonts."""

import io
import textwrap
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..pictures import to_picture
from ..rewards.pixels import as_rgb

if TYPE_CHECKING:
    from matplotlib.patches import Rectangle

DPI = 100
MARGIN = 20  # pixels, as all of these
INK = "#1d2330"
FAINT = "#717987"
TRACK = "#e6e9ee"
SIDES = {"plain": "#5b6577", "positive": "#3b7dd8", "negative": "#d8703b"}
CJK = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
       "WenQuanYi Micro Hei", "SimHei")  # fmt: skip


def thumbnail_size(images: Tensor, side: int) -> tuple[int, int]:
    """(height, width) of pictures (N, H, W, C) whose longer side becomes `side`; neither is below 1."""
    height, width = images.shape[1:3]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def thumbnail(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(*size, 3) uint8 from one picture (H, W, C) in [0, 1]; what is small is enlarged without smoothing."""
    colours = as_rgb(image.movedim(-1, 0)[None])[0].movedim(0, -1)
    enlarged = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return np.asarray(to_picture(colours).resize(size[::-1], how))


def wrap(text: str, columns: int, lines: int) -> list[str]:
    """At most `lines` lines of about `columns` Latin letters, or half as many Chinese ones; "..." ends what is cut."""
    limit = letters_in(columns, text)
    return textwrap.wrap(" ".join(text.split()), limit, max_lines=lines, placeholder="...") or [""]


def letters_in(columns: int, text: str) -> int:
    """How many letters of this text fit where so many Latin ones do: half as many, if some are Chinese."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return max(1, columns // 2) if wide else columns


class Sheet:
    """A white picture, drawn on in pixels from its upper left corner."""

    def __init__(self, width: int, height: int):
        from matplotlib.figure import Figure

        self.figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self.fonts = fonts()
        self.pasted: list[tuple[int, int, np.ndarray]] = []

    def text(
        self, x: float, y: float, text: str, size: float, *, colour: str = INK, room: float | None = None, **style: Any
    ):
        """A line whose middle is at y, cut off after `room` pixels; size in points. A "$" is a "$"."""
        font: dict[str, Any] = {"family": self.fonts, "fontsize": size, "parse_math": False, "va": "center_baseline"}
        line = self.axes.text(x, y, printable(text), color=colour, **font, **style)
        if room is not None:
            line.set_clip_on(True)
            line.set_clip_path(self._rectangle(x, y - size, room, 2 * size))

    def box(self, x: float, y: float, width: float, height: float, *, colour: str):
        self.axes.add_patch(self._rectangle(x, y, width, height, color=colour))

    def line(self, points: list[tuple[float, float]], *, colour: str, dashed: bool = False, marker: str = ""):
        """A line through these points; where one is NaN it has a gap. marker: matplotlib's, at each."""
        style: dict[str, Any] = {"linestyle": "--" if dashed else "-", "linewidth": 1 if dashed else 2}
        self.axes.plot(*zip(*points), color=colour, marker=marker, markersize=5, **style)

    def _rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> "Rectangle":
        from matplotlib.patches import Rectangle

        return Rectangle((x, y), width, height, linewidth=0, transform=self.axes.transData, **style)

    def paste(self, x: int, y: int, pixels: np.ndarray):
        """Put pixels (h, w, 3), uint8, over everything else, pixel by pixel."""
        self.pasted.append((x, y, pixels))

    def render(self) -> Image.Image:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        picture = Image.open(buffer).convert("RGB")
        for x, y, pixels in self.pasted:
            picture.paste(Image.fromarray(pixels), (x, y))
        return picture


def printable(text: str) -> str:
    """The text without what has no form, such as half a surrogate pair, which no font takes; a question mark there."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def fonts() -> list[str]:
    """Matplotlib's own font, and for Chinese those that this machine has."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK if name in known)]


def can_draw(text: str) -> bool:
    """Whether these fonts have a form for every letter of the text; matplotlib draws a box for one that is in none."""
    return text.isascii() or letters_of(*fonts()).issuperset(map(ord, printable(text)))


@cache
def letters_of(*names: str) -> frozenset[int]:
    """The code points that fonts of these names have, together."""
    from matplotlib import font_manager

    files = map(font_manager.findfont, names)
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))
