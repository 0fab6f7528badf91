"""The picture that a run shows of itself: fixed-seed samples before and now, and its curves."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import shorten
from ..language import in_english
from ..pictures import to_picture
from .measures import shown_numbers
from .sheet import Sheet, can_draw, fonts, letters_in, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = (  # title, the metrics in it
    ("rewards", ("reward_positive", "reward_negative")),
    ("words-gap", ("words_gap",)),
    ("saturation", ("saturation",)),
    ("clipped share", ("clipped",)),
    ("gradient norm", ("gradient_norm",)),
    ("velocity ratio", ("velocity_ratio",)),
)
COLOURS = ("#3b7dd8", "#d8703b", "#3f9b57", "#8a5fc7", "#b59a2c", "#777777")  # more curves than these are left out
WIDTH = 10.0  # inches
DPI = 96
LETTERS = 150  # in a line across the card
LARGE = 90  # the same of what shall be read on a node, where a card is half as large
LINE = 26  # pixels from one of these to the next
LONGEST_LABEL = 24  # letters of a reward's name in a legend


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, H, W, 3) in [0, 1] in rows of `columns`, two pixels apart: (rows H, columns W, 3)."""
    pixels = images.float().cpu().numpy()
    n, height, width, _ = pixels.shape
    rows = -(-n // columns)
    sheet = np.ones((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), pixels.dtype)
    for i, image in enumerate(pixels):
        top = (i // columns) * (height + 2)
        left = (i % columns) * (width + 2)
        sheet[top : top + height, left : left + width] = image
    return sheet


def square(images: Tensor) -> np.ndarray:
    """The images tiled to about a square."""
    return tile(images, max(1, round(len(images) ** 0.5)))


def tiled(images: Tensor) -> Image.Image:
    """The images as a picture, without what else is on the card."""
    return to_picture(torch.from_numpy(square(images)))


def draw_card(
    before: Tensor,
    now: Tensor,
    history: list[dict],
    title: str,
    *,
    measured: Sequence[Mapping[str, float]] = ({}, {}),
    text: str = "",
) -> Image.Image:
    """The card: both sample sets (N, H, W, 3) in [0, 1] side by side, under them one plot for each of CURVES.

    measured: numbers of either, which stand over it. text: sentences that stand beneath all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheets = [square(images) for images in (before, now)]
    height = WIDTH / 2 * sheets[0].shape[0] / sheets[0].shape[1]
    figure = Figure((WIDTH, height + 2.4), dpi=DPI, layout="constrained")
    figure.suptitle(printable(title), parse_math=False, family=fonts())
    halves: Any = figure.subfigures(2, height_ratios=(height, 2.0))  # matplotlib's types say one; it is an array of two
    pictures, curves = halves
    for axes, sheet, name, numbers in zip(pictures.subplots(1, 2), sheets, ("before", "now"), measured):
        axes.imshow(sheet, interpolation="nearest" if sheet.shape[0] < 500 else "antialiased")
        axes.set_title(f"{name}: {shown_numbers(numbers)}" if numbers else name, fontsize=9)
        axes.set_axis_off()
    for axes, (name, keys) in zip(curves.subplots(1, len(CURVES)), CURVES):
        _draw_curves(axes, name, keys, history)
    if text:
        lines = textwrap.fill(printable(text), letters_in(LETTERS, text))
        figure.supxlabel(lines, fontsize=8, x=0.01, ha="left", parse_math=False, family=fonts())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # as savefig does, without its second pass and the detour through a PNG
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def with_text(picture: Image.Image, text: str) -> Image.Image:
    """The picture as wide as a card, with sentences beneath it."""
    width = round(WIDTH * DPI)
    how = Image.Resampling.LANCZOS if picture.width > width else Image.Resampling.NEAREST
    picture = picture.resize((width, round(picture.height * width / picture.width)), how)
    lines = textwrap.wrap(text, letters_in(LARGE, text))
    sheet = Sheet(width, picture.height + LINE * (len(lines) + 1))
    sheet.paste(0, 0, np.asarray(picture))
    for row, line in enumerate(lines, 1):
        sheet.text(LINE / 2, picture.height + LINE * row, line, 13)
    return sheet.render()


def text_on_card(sentences: Callable[[], list[str]], before: Sequence[str] = ()) -> str:
    """What `sentences` gives, and what was said before, in the language in use, where this machine has a font for it.

    Else it is in English, without what was said before and has letters of no font; names that have get question marks.
    """
    text = " ".join([*sentences(), *before])
    if can_draw(text):
        return text
    with in_english():
        english = " ".join([*sentences(), *filter(can_draw, before)])
    return "".join(letter if can_draw(letter) else "?" for letter in english)


def _draw_curves(axes: "Axes", name: str, keys: tuple[str, ...], history: list[dict]):
    updates = [metrics["update"] for metrics in history]
    named = {key: None for metrics in history for key in metrics if key.partition("/")[0] in keys and "/" in key}
    keys = (*keys, *named)  # those of other rewards end in "/name"
    for key, colour in zip(keys, COLOURS):
        values = np.array([metrics.get(key, np.nan) for metrics in history])
        window = np.ones(min(5, max(1, len(values))))
        counts = np.convolve(np.ones(len(values)), window, "same") if len(values) else values
        axes.plot(updates, values, color=colour, alpha=0.3, linewidth=0.8)
        if len(values):
            axes.plot(updates, np.convolve(values, window, "same") / counts, color=colour, linewidth=1.5, label=key)
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)
    if len(keys) > 1 and history:
        _draw_legend(axes, keys)


def _draw_legend(axes: "Axes", keys: tuple[str, ...]):
    """The legend, with what the user called a reward as it is, which matplotlib takes for mathematics at a "$"."""
    for text, key in zip(axes.legend(fontsize=6).get_texts(), keys):
        label = printable(key.removeprefix("reward_").removeprefix("words_gap/"))
        text.set(text=shorten(label, LONGEST_LABEL), parse_math=False, family=fonts())
