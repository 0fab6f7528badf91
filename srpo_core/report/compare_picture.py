"""Pictures of two models from the same noise, all of them on one sheet."""

from PIL import Image
from torch import Tensor

from ..language import plural
from .compare import Comparison, ManySteps
from .measures import FEW_STEP_ERROR, shown_number
from .sheet import FAINT, INK, MARGIN, SIDES, TRACK, Sheet, thumbnail, thumbnail_size, wrap

NAMES = ("before", "after")
COLOURS = (SIDES["plain"], SIDES["positive"])
WIDTH = 1600  # pixels that the pictures of one row aim to fill
LEAST = 144  # pixels of a picture's longer side, at least
MOST = 512  # and at most
ENLARGED = 256  # up to which small pictures are enlarged
NARROWEST = 104  # pixels that a picture's caption needs
LEAST_WIDTH = 560  # of the sheet
WIDE = 1.25  # from this width / height on, after stands under before
WITHIN = 6  # pixels between the pictures of a pair
BETWEEN = 28  # pixels between pairs
TITLE = 34  # height of the title
MEANS = 54  # height of a row of means
MEAN = 225  # width of one of them
NOTE = 18  # height of a line of the note
SEEDS = 46  # height of the seeds
LINE = 22  # height of a heading's line
ARROW = "\u2192"


def draw_comparison(comparison: Comparison, note: str = "") -> Image.Image:
    """The sheet: a row of pairs for each prompt, under its text, a column for each seed; over all the means.

    note: how the pictures were made, for the heading.
    """
    return _Layout(comparison, note).draw()


class _Layout:
    """Where everything goes, in pixels. Text grows with the sheet by `scale`, to be readable when seen whole."""

    def __init__(self, comparison: Comparison, note: str):
        self.comparison = comparison
        self.columns = len(comparison.seeds)
        height, width = comparison.before.shape[1:3]
        self.beside = width < WIDE * height
        self.size = _size(comparison.before, self.columns * (2 if self.beside else 1))
        self.place = max(NARROWEST, self.size[1])  # width that a picture with its caption takes
        self.pair = 2 * self.place + WITHIN if self.beside else self.place
        row = self.columns * (self.pair + BETWEEN) - BETWEEN
        self.width = max(LEAST_WIDTH, 2 * MARGIN + row)
        self.scale = min(max(self.width / 1000, 1.0), 1.8)
        self.note = [line for text in (note, *comparison.notes) if text for line in self._wrap(text, 9, 2)]
        self.means_beside = max(1, int((self.width - 2 * MARGIN) // (MEAN * self.scale)))
        self.headings = [self._wrap(prompt, 11, 3) for prompt in comparison.prompts]

    def draw(self) -> Image.Image:
        s = self.scale
        top = self._top()
        heights = [self._row_height(lines) for lines in self.headings]
        self.sheet = Sheet(self.width, round(top + sum(heights)))
        self._draw_head()
        self._draw_seeds(top - 22 * s)
        for row, height in enumerate(heights):
            self._draw_row(row, top)
            top += height
        return self.sheet.render()

    def _wrap(self, text: str, points: float, lines: int) -> list[str]:
        return wrap(text, int((self.width - 2 * MARGIN) / (0.86 * points * self.scale)), lines)

    def _top(self) -> float:
        """Where the first row begins."""
        return self._notes_top() + (NOTE * len(self.note) + SEEDS) * self.scale

    def _notes_top(self) -> float:
        rows = -(-len(self.comparison.means) // self.means_beside)
        return MARGIN + (TITLE + MEANS * rows) * self.scale

    def _row_height(self, heading: list[str]) -> float:
        return (LINE * len(heading) + 32) * self.scale + self._lines() * self._line_height() - WITHIN

    def _lines(self) -> int:
        """Of pictures, or of pairs of them, under a prompt: those by many steps stand under the others."""
        return 2 if self.comparison.many else 1

    def _line_height(self) -> float:
        """From one of these to the next."""
        return (self.size[0] + self._caption() + WITHIN) * (1 if self.beside else 2)

    def _caption(self) -> float:
        """Height of the line under a picture."""
        return 2.2 * self._points() + 6

    def _points(self) -> float:
        """Size of a caption: "before" and a number fit under the picture."""
        return min(10 * self.scale, self.place / 12)

    def _draw_head(self):
        s = self.scale
        sheet = self.sheet
        sheet.text(MARGIN, MARGIN + 12 * s, "Before and after", 15 * s, weight="bold")
        for i, mean in enumerate(self.comparison.means):
            row, column = divmod(i, self.means_beside)
            self._draw_mean(MARGIN + MEAN * s * column, MARGIN + (TITLE + MEANS * row) * s, *mean)
        for line, text in enumerate(self.note):
            sheet.text(MARGIN, self._notes_top() + NOTE * (line + 0.5) * s, text, 9 * s, colour=FAINT)

    def _draw_mean(self, x: float, y: float, *mean: str):
        """mean: what it is of, before, after."""
        s = self.scale
        name, before, after = mean
        room = 12.2 * s * len(before)
        self.sheet.text(x, y + 12 * s, f"mean {name}", 8.5 * s, colour=FAINT, room=(MEAN - 15) * s)
        self.sheet.text(x, y + 33 * s, before, 13 * s, colour=COLOURS[0], weight="bold")
        self.sheet.text(x + room + 6 * s, y + 33 * s, ARROW, 13 * s, colour=FAINT)
        self.sheet.text(x + room + 32 * s, y + 33 * s, after, 13 * s, colour=COLOURS[1], weight="bold")

    def _draw_seeds(self, y: float):
        for column, seed in enumerate(self.comparison.seeds):
            x = self._left(column)
            self.sheet.text(x, y, f"seed {seed}", 9 * self.scale, colour=FAINT, room=self.pair, weight="bold")

    def _left(self, column: int) -> int:
        return MARGIN + column * (self.pair + BETWEEN)

    def _draw_row(self, row: int, y: float):
        s = self.scale
        self.sheet.box(MARGIN, y - 8 * s, self.width - 2 * MARGIN, max(1, s), colour=TRACK)
        for line, text in enumerate(self.headings[row]):
            self.sheet.text(MARGIN, y + (14 + LINE * line) * s, text, 11 * s, colour=INK, weight="bold")
        top = round(y + (LINE * len(self.headings[row]) + 12) * s)
        for column in range(self.columns):
            i = row * self.columns + column
            for which in range(2):
                self._draw_few(which, i, column, top)
                if many := self.comparison.many:
                    self._draw_many(which, i, column, top=top + round(self._line_height()), many=many)

    def _draw_few(self, which: int, i: int, column: int, top: int):
        scores = self.comparison.scores
        score = scores.show(scores.values[which, i].item()) if scores else ""
        image = (self.comparison.before, self.comparison.after)[which][i]
        self._draw_picture(image, (NAMES[which], score), which, column, top=top)

    def _draw_many(self, which: int, i: int, column: int, *, top: int, many: ManySteps):
        error = shown_number(FEW_STEP_ERROR, self.comparison.few_step_errors[which, i].item())
        image = (many.before, many.after)[which][i]
        self._draw_picture(image, (plural(many.steps, "step"), error), which, column, top=top)

    def _draw_picture(self, image: Tensor, caption: tuple[str, str], which: int, column: int, *, top: int):
        """One picture, under it a bar and a caption in the colour of before or after: what it is, and a number."""
        (height, width) = self.size
        points = self._points()
        colour = COLOURS[which]
        x = self._left(column)
        y = top
        if self.beside:
            x += which * (self.place + WITHIN)
        else:
            y += round(which * (height + self._caption() + WITHIN))
        left = x + (self.place - width) // 2
        line = y + height + 4 + 1.1 * points
        name, value = caption
        self.sheet.paste(left, y, thumbnail(image, self.size))
        self.sheet.box(left, y + height, width, 3, colour=colour)
        self.sheet.text(x, line, name, points, colour=colour)
        self.sheet.text(x + _past(name) * points, line, value, points, colour=colour, weight="bold")


def _past(name: str) -> float:
    """Where what follows this name in a caption begins, in its points; the same past "before" and "after"."""
    return max(5.9, 0.98 * len(name))


def _size(images: Tensor, across: int) -> tuple[int, int]:
    """(height, width) at which pictures (N, H, W, C) are shown, `across` of them in a row.

    Large ones are made smaller, small ones whole times larger.
    """
    height, width = images.shape[1:3]
    longer = max(height, width)
    goal = min(max(WIDTH // across * longer // width, LEAST), MOST)
    if longer < goal:
        goal = longer * max(1, min(goal, ENLARGED) // longer)
    return thumbnail_size(images, goal)
