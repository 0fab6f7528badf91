"""The picture of a reward table: one row for each picture, best first, one column for each word."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..language import plural
from .numbers import Scale, digits_for, number
from .reward_table import MAPPED, Column, Table
from .sheet import FAINT, INK, MARGIN, SIDES, TRACK, Sheet, thumbnail, thumbnail_size, wrap

ROWS = 16  # more pictures than these are left to the ranking
LABEL = 88
LARGE = 128  # longest side of a thumbnail with maps
SMALL = 84  # and of one without
SPACE = 14
CELL = LARGE + SPACE
NUMBERS = 34  # height of a score and its bar
LEAST_WIDTH = 600
STRIPE = "#f6f7f9"
GOLD = "#fff3cf"
STAR = "#c98a00"
GROUPS = {"plain": "", "positive": "words", "negative": "negative words"}


def draw_table(images: Tensor, table: Table, saliency: dict[int, Tensor], prompt: str, reward: str) -> Image.Image:
    """The table as a picture.

    images: all pictures, (N, H, W, C) in [0, 1]. saliency: from `find_saliency`, at `thumbnail_size(images, LARGE)`.
    prompt, reward: for the heading, with the reward's name. The best ROWS pictures are shown.
    """
    shown = table.ranking[:ROWS]
    columns = len(table.columns) + table.has_gap
    width = max(LEAST_WIDTH, 2 * MARGIN + LABEL + (1 + columns) * CELL - SPACE)
    heading = _heading(table, prompt=prompt, reward=reward, width=width)
    notes = _notes(table, saliency, reward, width)
    titles = [wrap(column.title, 17, 3) for column in table.columns] + [["words-gap"]] * table.has_gap
    top = MARGIN + 24 * len(heading[0]) + 20 * len(heading[1]) + 30 + 17 * max(map(len, titles)) + 8
    heights = [_row_height(images, i in saliency) for i in shown]
    sheet = Sheet(width, top + sum(heights) + 12 + 17 * len(notes) + MARGIN)

    _draw_heading(sheet, *heading)
    _draw_titles(sheet, table, titles, top)
    y = top
    for rank, (i, height) in enumerate(zip(shown, heights)):
        if rank % 2 == 0:
            sheet.box(MARGIN / 2, y, width - MARGIN, height, colour=STRIPE)
        _draw_row(sheet, y, height, rank=rank, i=i, image=images[i], table=table, saliency=saliency.get(i))
        y += height
    for line, note in enumerate(notes):
        sheet.text(MARGIN, y + 21 + 17 * line, note, 8, colour=FAINT)
    return sheet.render()


def overlay(picture: np.ndarray, saliency: Tensor) -> np.ndarray:
    """A saliency map (h, w) in [0, 1] over a thumbnail (h, w, 3): what is not looked at turns dark and grey."""
    from matplotlib import colormaps

    strength = saliency.numpy() ** 0.7  # lifts what is weak enough to be overlooked
    grey = picture.mean(-1, keepdims=True) * 0.6
    glow = colormaps["inferno"](0.2 + 0.8 * strength)[..., :3] * 255
    cover = 0.8 * strength[..., None]
    return (grey * (1 - cover) + glow * cover).round().astype(np.uint8)


def _heading(table: Table, *, prompt: str, reward: str, width: int) -> tuple[list[str], list[str]]:
    kind = f"Scores of {reward}. {plural(len(table.values), 'picture')}, ranked by {table.merit_name}."
    title = wrap(" ".join(prompt.split()) or "Reward table", width // 10, 2)
    return title, wrap(kind, width // 7, 2)


def _notes(table: Table, saliency: dict, reward: str, width: int) -> list[str]:
    """What the picture does not say by itself."""
    count = len(table.values)
    strange = int((~table.values.isfinite()).sum())
    notes = [
        (count > ROWS, f"The best {ROWS} of {count} pictures; the other {count - ROWS} are in the ranking."),
        (strange, f"{strange} of the scores are no finite numbers; their pictures are ranked last."),
        (table.values.numel() > 1, "Bars: from the lowest to the highest score of the table."),
        (
            table.has_gap,
            "Words-gap: mean over words minus mean over negative words; to the right, the words have it.",
        ),
        (count > 1, "Star: the highest of its column; under a negative word the lowest."),
        (
            saliency,
            "Maps: where a change of pixels changes the score most, |d score / d pixel|, smoothed, each on a scale of "
            f"its own{f'; for the best {MAPPED}' if count > MAPPED else ''}.",
        ),
    ]
    return [line for wanted, note in notes if wanted for line in wrap(note, width // 6, 3)]


def _row_height(images: Tensor, mapped: bool) -> int:
    if mapped:
        return thumbnail_size(images, LARGE)[0] + 6 + NUMBERS + 20
    return max(thumbnail_size(images, SMALL)[0], NUMBERS + 6) + 16


def _draw_heading(sheet: Sheet, title: list[str], kind: list[str]):
    for line, text in enumerate(title):
        sheet.text(MARGIN, MARGIN + 8 + 24 * line, text, 13, weight="bold")
    for line, text in enumerate(kind):
        sheet.text(MARGIN, MARGIN + 24 * len(title) + 7 + 20 * line, text, 9, colour=FAINT)


def _draw_titles(sheet: Sheet, table: Table, titles: list[list[str]], bottom: int):
    """Column headings that end above `bottom`, and over each group of words its name."""
    sides = [column.side for column in table.columns]
    above = bottom - 8 - 17 * max(map(len, titles))
    for side in dict.fromkeys(sides):
        first = _cell(sides.index(side))
        last = _cell(len(sides) - 1 - sides[::-1].index(side))
        sheet.text(first, above - 12, GROUPS[side], 8, colour=SIDES[side])
        sheet.box(first, above - 3, last - first + LARGE, 2, colour=SIDES[side])
    if table.has_gap:
        sheet.box(_cell(len(sides)), above - 3, LARGE, 2, colour=INK)
    for c, lines in enumerate(titles):
        for line, text in enumerate(lines):
            sheet.text(_cell(c), above + 10 + 17 * line, text, 9.5, room=CELL - 4, weight="bold")


def _cell(column: int) -> int:
    """Left edge of a column; the thumbnails are column -1."""
    return MARGIN + LABEL + (1 + column) * CELL


def _draw_row(
    sheet: Sheet, y: int, height: int, *, rank: int, i: int, image: Tensor, table: Table, saliency: Tensor | None
):
    size = thumbnail_size(image[None], SMALL if saliency is None else LARGE)
    picture = thumbnail(image, size)
    above = y + 10 if saliency is not None else y + (height - size[0]) // 2
    numbers = above + size[0] + 6 if saliency is not None else y + (height - NUMBERS) // 2
    left = (LARGE - size[1]) // 2
    sheet.text(MARGIN, y + height / 2 - 8, str(rank + 1), 17, weight="bold")
    sheet.text(MARGIN, y + height / 2 + 14, f"picture {i + 1}", 8.5, colour=FAINT)
    sheet.paste(_cell(-1) + left, above, picture)
    for c in range(len(table.columns) + table.has_gap):
        if saliency is not None:
            sheet.paste(_cell(c) + left, above, overlay(picture, saliency[c]))
        if c < len(table.columns):
            _draw_score(sheet, _cell(c), y=numbers, table=table, i=i, c=c)
        else:
            _draw_gap(sheet, _cell(c), y=numbers, table=table, i=i)


def _draw_score(sheet: Sheet, x: int, *, y: int, table: Table, i: int, c: int):
    scale = Scale(table.values)
    value = table.values[i, c].item()
    column = table.columns[c]
    _draw_number(sheet, x, y, number(value, scale.digits), best=i == best_of(table.values[:, c], column))
    sheet.box(x, y + 22, LARGE, 7, colour=TRACK)
    sheet.box(x, y + 22, LARGE * _bar(scale, value), 7, colour=SIDES[column.side])


def _bar(scale: Scale, value: float) -> float:
    """Length of the bar, in [0, 1]: a sliver for the lowest, so that it is seen; none for what is no number."""
    return 0.02 + 0.98 * scale.place(value, alone=1.0) if np.isfinite(value) else 0.0


def _draw_gap(sheet: Sheet, x: int, *, y: int, table: Table, i: int):
    """A bar from the middle, to the right for the words, to the left for the negative words."""
    value = table.merit[i].item()
    largest = Scale(table.merit.abs()).high
    best = i == best_of(table.merit, Column("words-gap", ""))
    _draw_number(sheet, x, y, number(value, digits_for(table.merit), "+"), best=best)
    share = value / largest if np.isfinite(value) and largest else 0.0
    middle = x + LARGE / 2
    length = abs(share) * LARGE / 2
    sheet.box(x, y + 22, LARGE, 7, colour=TRACK)
    sheet.box(middle - length * (share < 0), y + 22, length, 7, colour=SIDES["positive" if share > 0 else "negative"])
    sheet.box(middle - 0.5, y + 19, 1, 13, colour=INK)


def _draw_number(sheet: Sheet, x: int, y: int, text: str, *, best: bool):
    if best:
        sheet.box(x - 5, y - 2, LARGE + 10, NUMBERS + 3, colour=GOLD)
        sheet.text(x + LARGE, y + 10, "\u2605", 10, colour=STAR, ha="right")
    sheet.text(x, y + 10, text, 10.5, colour=INK, weight="bold" if best else "normal")


def best_of(values: Tensor, column: Column) -> int | None:
    """The best picture of a column: the highest, under a negative word the lowest; None where none stands out."""
    finite = values.isfinite()
    if finite.sum() < 2 or values[finite].max() == values[finite].min():
        return None
    sign = -1 if column.side == "negative" else 1
    return int(torch.where(finite, sign * values, -torch.inf).argmax())
