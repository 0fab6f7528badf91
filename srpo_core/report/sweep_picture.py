"""The picture of a sweep: a column for each noise level, its pictures above its numbers, the trained window shaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..algorithm.sweep import View
from .numbers import Scale, number
from .sheet import FAINT, INK, MARGIN, SIDES, Sheet, thumbnail, thumbnail_size, wrap
from .sweep import Sweep

LARGEST = 160  # longest side of a picture; what is smaller is enlarged whole times
LABEL = 210  # width of what stands left of the columns
GAP = 12  # between columns
CELL = LARGEST + GAP
HEAD = 70  # height of the columns' heads
CAPTION = 26
LINE = 20
CHART = 84
SPACE = 26  # above a chart, for its title
SHADE = "#e3eefb"
PLAIN = SIDES["negative"]
RECOVERED = SIDES["positive"]
PLAIN_WORDS = ("#b0885f", "#e3b491")  # positive, negative
RECOVERED_WORDS = ("#2a5ca3", "#8ab4e8")


@dataclass(frozen=True, kw_only=True)
class Curve:
    name: str
    values: Tensor
    colour: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over the columns with their numbers below. level: drawn as a dashed line, called `level_name`."""

    title: str
    curves: Sequence[Curve]
    level: float | None = None
    level_name: str = ""
    sign: str = ""

    @property
    def height(self) -> int:
        return SPACE + CHART + LINE * len(self.curves) + 12

    @property
    def values(self) -> Tensor:
        """All that is to be seen in it, and what is not finite."""
        levels = [] if self.level is None else [torch.tensor([self.level])]
        return torch.cat([*(curve.values for curve in self.curves), *levels])


def draw_sweep(sweep: Sweep, title: str) -> Image.Image:
    """The sweep as a picture. title: for the heading, such as the prompt."""
    return _Layout(sweep, title).draw()


class _Layout:
    def __init__(self, sweep: Sweep, title: str):
        self.sweep = sweep
        self.width = 2 * MARGIN + LABEL + CELL * len(sweep.levels)
        self.size = _size(sweep)
        self.heading = wrap(" ".join(title.split()) or "Recovery sweep", self.width // 11, 2)
        self.notes = [line for note in _notes(sweep) for line in wrap(note, self.width // 7, 3)]
        self.charts = list(_charts(sweep))

    def draw(self) -> Image.Image:
        top = MARGIN + 28 * len(self.heading) + 30
        row = self.size[0] + CAPTION + 8
        charts = sum(chart.height for chart in self.charts)
        bottom = top + HEAD + 3 * row + charts
        self.sheet = Sheet(self.width, bottom + 16 + LINE * len(self.notes) + MARGIN)
        self._draw_heading(top)
        self._draw_shade(top, bottom)
        self._draw_heads(top)
        y = top + HEAD
        for draw in (self._draw_noised, self._draw_plain, self._draw_recovered):
            draw(y)
            y += row
        for chart in self.charts:
            self._draw_chart(chart, y)
            y += chart.height
        for i, note in enumerate(self.notes):
            self.sheet.text(MARGIN, bottom + 22 + LINE * i, note, 9, colour=FAINT)
        return self.sheet.render()

    def _left(self, column: int) -> int:
        return MARGIN + LABEL + CELL * column

    def _middle(self, column: int) -> float:
        return self._left(column) + LARGEST / 2

    def _draw_heading(self, bottom: int):
        for i, line in enumerate(self.heading):
            self.sheet.text(MARGIN, MARGIN + 10 + 28 * i, line, 15, weight="bold")
        shown = (
            "What Direct-Align sees of this picture: one step of the model from each noise level, two ways to read it."
        )
        self.sheet.text(MARGIN, bottom - 20, shown, 10, colour=FAINT)

    def _draw_shade(self, top: int, bottom: int):
        """The window behind the columns that are in it."""
        columns = [i for i, trained in enumerate(self.sweep.trained) if trained]
        left = self._left(columns[0]) - GAP / 2
        width = CELL * len(columns)
        window = self.sweep.window
        self.sheet.box(left, top, width, bottom - top, colour=SHADE)
        self.sheet.box(left, top, width, 4, colour=RECOVERED)
        text = f"trained: {window.sigma_max:.4f} to {window.sigma_min:.4f} of noise"
        self.sheet.text(left + 8, top + 20, text, 10.5, colour=RECOVERED, weight="bold", room=width - 12)

    def _draw_heads(self, top: int):
        """Each column's share of noise, and the clean picture left of them all."""
        self.sheet.text(MARGIN, top + 52, "clean picture", 10, colour=FAINT)
        for i, sigma in enumerate(self.sweep.sigmas):
            text = f"noise {sigma:.3f}"
            self.sheet.text(self._middle(i), top + 52, text, 11, weight="bold", ha="center")

    def _draw_noised(self, y: int):
        self._paste(MARGIN, y, self.sweep.clean)
        self._draw_row(y, self.sweep.noised, [f"{sigma:.0%} noise" for sigma in self.sweep.sigmas], FAINT)

    def _draw_plain(self, y: int):
        self._label(y, ["plain one-step", "x - sigma v, as ReFL", "reads the model"], PLAIN)
        self._draw_row(y, self.sweep.plain, [f"error x {sigma:.2f}" for sigma in self.sweep.sigmas], PLAIN)

    def _draw_recovered(self, y: int):
        self._label(y, ["with the noise prior", "a short step, then the", "known noise taken out"], RECOVERED)
        gains = [level.branch.error_gain.item() for level in self.sweep.levels]
        self._draw_row(y, self.sweep.recovered, [f"error x {gain:.2f}" for gain in gains], RECOVERED)

    def _label(self, y: float, lines: list[str], colour: str):
        self.sheet.text(MARGIN, y + 14, lines[0], 12, colour=colour, weight="bold")
        for i, line in enumerate(lines[1:]):
            self.sheet.text(MARGIN, y + 40 + 18 * i, line, 9.5, colour=FAINT)

    def _draw_row(self, y: int, views: Sequence[View], captions: list[str], colour: str):
        for i, (view, caption) in enumerate(zip(views, captions)):
            self._paste(self._left(i) + (LARGEST - self.size[1]) // 2, y, view)
            self.sheet.text(self._middle(i), y + self.size[0] + 14, caption, 10, colour=colour, ha="center")

    def _paste(self, x: int, y: int, view: View):
        self.sheet.paste(x, y, thumbnail(view.image.movedim(0, -1), self.size))

    def _draw_chart(self, chart: Chart, y: float):
        self.sheet.text(MARGIN, y + SPACE / 2, chart.title, 10.5, weight="bold")
        top = y + SPACE
        scale = Scale(chart.values)
        right = self._left(len(self.sweep.levels)) - GAP
        if chart.level is not None:
            height = top + _down(scale, chart.level)
            self.sheet.line([(self._left(0), height), (right, height)], colour=INK, dashed=True)
            text = f"{chart.level_name} {number(chart.level, scale.digits, chart.sign)} (dashed)"
            self.sheet.text(MARGIN, top + 14, text, 9, colour=INK)
        for i, curve in enumerate(chart.curves):
            values = curve.values.tolist()
            points = [(self._middle(c), top + _down(scale, value)) for c, value in enumerate(values)]
            self.sheet.line(points, colour=curve.colour, marker="o")
            line = top + CHART + 16 + LINE * i
            self.sheet.text(MARGIN, line, curve.name, 10, colour=curve.colour, weight="bold")
            for c, value in enumerate(values):
                shown = number(value, scale.digits, chart.sign)
                self.sheet.text(self._middle(c), line, shown, 10, colour=curve.colour, ha="center")


def _down(scale: Scale, value: float) -> float:
    """How many pixels below a chart's top a value is; NaN for what is not finite."""
    return CHART * (1 - scale.place(value, alone=0.5))


def _size(sweep: Sweep) -> tuple[int, int]:
    """(height, width) at which the pictures are shown."""
    image = sweep.clean.image.movedim(0, -1)[None]
    longest = max(image.shape[1:3])
    return thumbnail_size(image, longest * max(1, LARGEST // longest) if longest <= LARGEST else LARGEST)


def _charts(sweep: Sweep):
    yield _pair("distance from the clean latent", sweep.distances)
    if sweep.question:
        (positive, negative) = sweep.rewards
        pairs = ((0, "plain", PLAIN_WORDS), (1, "recovered", RECOVERED_WORDS))
        curves = [
            Curve(name=f"{name}, {word}", values=side[row], colour=colour)
            for row, name, colours in pairs
            for word, side, colour in zip(("positive", "negative"), (positive, negative), colours)
        ]
        yield Chart(title="reward", curves=curves)
        yield _pair("words-gap", sweep.gaps, level=sweep.clean_gap, level_name="clean picture", sign="+")
    if sweep.has_gradients:
        yield _pair("gradient norm at the latent", sweep.gradients)


def _pair(title: str, values: Tensor, **options: Any) -> Chart:
    names = (("plain one-step", PLAIN), ("with the noise prior", RECOVERED))
    curves = [Curve(name=name, values=row, colour=colour) for (name, colour), row in zip(names, values)]
    return Chart(title=title, curves=curves, **options)


def _notes(sweep: Sweep) -> list[str]:
    """What the picture does not say by itself."""
    step = sweep.levels[0].branch
    width = (step.sigma_in - step.sigma_out).item()
    notes = [
        "All columns have the same clean latent and the same noise, and each asks the model once: both rows below the "
        "noisy one read the same answer. Plain one-step goes all the way on the model's word. With the noise prior "
        f"the model goes a step of {width:.4f}, and the noise, which is known, is taken out: so less of what the model "
        'gets wrong is left in the picture ("error x").',
        "Distance: root mean square of the latent minus the clean one, over the clean one's.",
    ]
    if sweep.question:
        notes += [f"{words} Words-gap: positive minus negative." for words in sweep.words()]
    if sweep.has_gradients:
        notes.append(
            "Gradient: that of the denoise branch's loss at the latent; of it, the model gets the share that is called "
            '"error x".'
        )
    return notes
