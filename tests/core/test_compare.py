"""Comparing two models' pictures: the scores against asking one by one, and where each picture stands on the sheet."""

import json
import math

import numpy as np
import pytest
import torch
from find_host import ROOT
from tiny_world import TinyReward

from srpo_core.algorithm.objective import Objective
from srpo_core.report.compare import Comparison, PictureScores, score_pictures
from srpo_core.report.compare_picture import LEAST_WIDTH, MOST, draw_comparison

PROMPTS = ["a red circle", "a blue square", "a green star"]
SEEDS = [7, 8]
OBJECTIVE = Objective(positive=("Detail", "Real", "Photo"), negative=("Painting", "Flat"))


def pictures(count, height=12, width=10, seed=0):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def compared(prompts=PROMPTS, seeds=SEEDS, **size):
    count = len(prompts) * len(seeds)
    return Comparison(prompts, seeds, pictures(count, **size), pictures(count, seed=1, **size))


def one_by_one(comparison, texts):
    """(2, N): every picture asked alone; texts(prompt) are averaged."""
    rows = [[], []]
    for row, images in zip(rows, (comparison.before, comparison.after)):
        for i, image in enumerate(images.movedim(-1, 1)):
            asked = texts(PROMPTS[i // len(SEEDS)])
            row.append(sum(TinyReward().score(image[None], [text]).item() for text in asked) / len(asked))
    return torch.tensor(rows, dtype=torch.float64)


# What a reward says of them


def test_the_score_is_the_words_gap_of_all_words_and_of_the_pictures_own_prompt():
    comparison = compared()
    scores = score_pictures(comparison, TinyReward(), OBJECTIVE)
    positive = one_by_one(comparison, lambda prompt: [f"{word}. {prompt}" for word in OBJECTIVE.positive])
    negative = one_by_one(comparison, lambda prompt: [f"{word}. {prompt}" for word in OBJECTIVE.negative])
    torch.testing.assert_close(scores.values, positive - negative, rtol=0, atol=1e-6)
    assert (scores.name, scores.sign) == ("words-gap", "+")
    assert "TinyReward: mean over 3 words - mean over 2 negative words" in scores.note


def test_without_an_objective_the_prompt_alone_is_asked():
    comparison = compared()
    scores = score_pictures(comparison, TinyReward(), None)
    torch.testing.assert_close(scores.values, one_by_one(comparison, lambda prompt: [prompt]), rtol=0, atol=1e-6)
    assert (scores.name, scores.sign) == ("TinyReward", "")


def test_a_reward_without_text_gives_its_one_score():
    class Brightness:
        reads_text = False

        def score(self, images, texts):
            return images.mean((1, 2, 3))

    comparison = compared()
    scores = score_pictures(comparison, Brightness(), OBJECTIVE)
    expected = torch.stack([images.double().mean((1, 2, 3)) for images in (comparison.before, comparison.after)])
    torch.testing.assert_close(scores.values, expected, rtol=0, atol=1e-6)
    assert scores.name == "Brightness"


def test_all_texts_are_prepared_before_the_first_picture():
    class Prepared(TinyReward):
        prepared = None

        def prepare(self, texts):
            assert self.prepared or not self.asked
            self.prepared = self.prepared or texts
            assert set(texts) <= set(self.prepared)

    reward = Prepared()
    score_pictures(compared(), reward, OBJECTIVE)
    assert len(reward.prepared) == len(PROMPTS) * (1 + 3 + 2)


def test_progress_counts_every_picture_and_what_it_raises_ends_the_work():
    done = []
    score_pictures(compared(), TinyReward(), OBJECTIVE, on_progress=done.append)
    assert sum(done) == 2 * len(PROMPTS) * len(SEEDS)

    def cancel(_):
        raise InterruptedError

    reward = TinyReward()
    with pytest.raises(InterruptedError):
        score_pictures(compared(), reward, OBJECTIVE, on_progress=cancel)
    assert len(reward.asked) == 1


def test_one_sentence_says_what_changed():
    grey = torch.full((2, 4, 4, 3), 0.5)
    red = torch.tensor([0.8, 0.4, 0.4]).expand(2, 4, 4, 3)
    plain = Comparison(["a"], [0, 1], red, grey)
    assert plain.summary() == "2 pictures: saturation 0.50 -> 0.00, diversity 0.00 -> 0.00"
    scores = PictureScores("words-gap", torch.tensor([[-0.3, -0.1], [-0.1, 0.0]], dtype=torch.float64))
    scored = Comparison(["a"], [0, 1], red, grey, scores)
    assert scored.summary() == (
        "2 pictures: words-gap -0.200 -> -0.050, saturation 0.50 -> 0.00, diversity 0.00 -> 0.00"
    )
    strange = Comparison(["a"], [0], red[:1], grey[:1], PictureScores("HPS", torch.tensor([[math.nan], [0.25]])))
    assert strange.summary() == "1 picture: HPS NaN -> 0.2500, saturation 0.50 -> 0.00"
    large = Comparison(["a"], [0], torch.full((1, 64, 64, 3), 0.5), torch.full((1, 64, 64, 3), 0.6))
    assert large.summary() == "1 picture: saturation 0.00 -> 0.00, grid 16 px 0.00 -> 0.00, grid 8 px 0.00 -> 0.00"
    assert plain.notes[0].startswith("Diversity: mean distance") and "two seeds" in large.notes[0]


# The sheet


def flat(colours, height, width):
    return (torch.tensor(colours).float() / 255)[:, None, None].expand(-1, height, width, -1)


def where(sheet, colour):
    """Rows and columns, each (first, last), of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    assert len(rows), f"{colour} is nowhere"
    return (rows.min(), rows.max()), (columns.min(), columns.max())


def places(rows, columns, height=8, width=8, prompts=None):
    """((2, rows, columns) upper left corners (y, x), (height, width) of the pictures), found by their colours."""
    count = rows * columns
    colours = [[(200 + 50 * after, 3 * i, 250 - 3 * i) for i in range(count)] for after in (0, 1)]
    images = [flat(colour, height, width) for colour in colours]
    scores = PictureScores("words-gap", torch.linspace(-1, 1, 2 * count).view(2, count))
    sheet = draw_comparison(Comparison(prompts or ["a"] * rows, list(range(columns)), *images, scores), "A note.")
    found = [where(sheet, colour) for half in colours for colour in half]
    sizes = {(int(y[1] - y[0]) + 1, int(x[1] - x[0]) + 1) for y, x in found}
    assert len(sizes) == 1
    for y, x in found:
        block = np.asarray(sheet)[y[0] : y[1] + 1, x[0] : x[1] + 1]
        assert (block == block[0, 0]).all()  # nothing is drawn over it
    return np.array([(y[0], x[0]) for y, x in found]).reshape(2, rows, columns, 2), sizes.pop()


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 2), (8, 4)])
def test_prompts_are_rows_and_seeds_columns_and_after_stands_beside_before(rows, columns):
    corners, (height, width) = places(rows, columns)
    before, after = corners
    assert (before[..., 0] == after[..., 0]).all()
    assert (after[..., 1] >= before[..., 1] + width).all() and (after[..., 1] < before[..., 1] + width + 20).all()
    assert (np.diff(before[..., 0], axis=0) > height).all() and (np.ptp(before[..., 0], axis=1) == 0).all()
    assert (before[:, 1:, 1] > after[:, :-1, 1] + width).all() and (np.ptp(before[..., 1], axis=0) == 0).all()


def test_of_wide_pictures_after_stands_under_before():
    corners, (height, width) = places(2, 3, 9, 16)
    before, after = corners
    assert (before[..., 1] == after[..., 1]).all() and (after[..., 0] > before[..., 0] + height).all()
    assert (after[0, :, 0] + height < before[1, :, 0]).all()
    assert (before[:, 1:, 1] > before[:, :-1, 1] + width).all()


@pytest.mark.parametrize("height, width", [(1, 1), (400, 1), (1, 400), (2000, 1500), (720, 720), (64, 64)])
def test_pictures_of_every_size_keep_their_shape(height, width):
    _, (shown_height, shown_width) = places(1, 2, height, width)
    assert max(shown_height, shown_width) <= MOST
    longer = max(shown_height, shown_width)
    share = min(width, height) / max(width, height)
    assert min(shown_height, shown_width) == max(1, round(longer * share))


def test_small_pictures_are_whole_times_larger_and_seen_as_they_are():
    comparison = compared(["a"], [0], height=64, width=64)
    sheet = np.asarray(draw_comparison(comparison))
    for images in (comparison.before, comparison.after):
        block = (images[0] * 255).round().byte().numpy().repeat(4, 0).repeat(4, 1)
        rows, columns = np.nonzero((sheet == block[0, 0]).all(-1))
        parts = (sheet[y : y + 256, x : x + 256] for y, x in zip(rows, columns))
        assert any(part.shape == block.shape and (part == block).all() for part in parts)


def test_room_for_long_prompts_and_for_none():
    height = [draw_comparison(compared([text], [0])).height for text in ("a", "long words " * 7, "long words " * 99)]
    assert height[0] < height[1] < height[2] < height[0] + 80
    places(2, 1, prompts=["", "100% $5 _a_ {b} \\frac ^"])


def test_the_sheet_is_no_wider_than_a_screen_and_never_tiny():
    assert draw_comparison(compared(["a"], [0])).width == LEAST_WIDTH
    for columns in (1, 2, 4):
        wide = draw_comparison(compared(["a"], list(range(columns)), height=512, width=512)).width
        assert 1000 < wide < 1900


@pytest.mark.parametrize("number", [2, 3])
def test_the_workflows_of_flux_compare_two_seeds_of_a_prompt(number):
    """Without two there is no diversity to see."""
    (file,) = (ROOT / "workflows").glob(f"{number} *line).json")
    nodes = json.loads(file.read_text("utf-8"))["nodes"]
    (compare,) = (node for node in nodes if node["type"] == "SRPO_Compare")
    names = [each["name"] for each in compare["inputs"] if "widget" in each]
    values = dict(zip(names, compare["widgets_values"], strict=True))
    assert values["seeds"] == 2 and values["prompts"] == 2
