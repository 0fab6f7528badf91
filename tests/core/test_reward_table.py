"""The reward table: scores, ranking and maps against independent computations, and the picture's very pixels."""

import math
import zlib

import numpy as np
import pytest
import torch
from tiny_world import TinyReward, numbers

from srpo_core.algorithm.objective import Objective
from srpo_core.report import reward_table, table_picture
from srpo_core.report.reward_table import (
    Column,
    Table,
    ask_for,
    find_saliency,
    heat,
    pixel_gradient,
    score_table,
)
from srpo_core.report.sheet import thumbnail_size, wrap
from srpo_core.report.table_picture import LARGE, SMALL, draw_table

WORDS = ("Detail", "Real", "Photo")
NEGATIVE = ("Painting", "Flat")
PROMPT = "a red circle"
PLAIN = (Column("prompt", PROMPT),)
BLUE = (0x3B, 0x7D, 0xD8)
ORANGE = (0xD8, 0x70, 0x3B)
GREY = (0x5B, 0x65, 0x77)


def pictures(count, height=12, width=10, channels=3, seed=0):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


class ScoreAlone:
    """Linear in the pixels, by a direction that the text names; the least a reward can be. Remembers batch sizes."""

    def __init__(self):
        self.batches = []

    def score(self, images, texts):
        self.batches.append(len(images))
        return torch.stack([(image * direction(text, image)).sum() for image, text in zip(images, texts)])


def direction(text, image):
    return numbers(zlib.crc32(text.encode()), *image.shape).to(image)


class Sharpness:
    reads_text = False

    def score(self, images, texts):
        return images.diff(dim=-1).abs().mean((1, 2, 3))


class Fixed:
    """Says what it was told to, picture by picture, whatever the text."""

    reads_text = False

    def __init__(self, values):
        self.values = list(values)

    def score(self, images, texts):
        said = self.values[: len(images)]
        self.values = self.values[len(images) :]
        return torch.tensor(said)


def table_of(reward, images, words=WORDS, negative=NEGATIVE, prompt=PROMPT, **options):
    return score_table(reward, images, ask_for(reward, prompt, words, negative), **options)


def one_by_one(reward, images, texts):
    """(pictures, texts), each asked alone."""
    batches = [image.movedim(-1, 0)[None] for image in images]
    return torch.tensor([[reward.score(batch, [text]).item() for text in texts] for batch in batches])


def texts_of(words):
    return [f"{word}. {PROMPT}" for word in words]


# What is asked


@pytest.mark.parametrize("prompt", [PROMPT, f" {PROMPT}\n", "", " \n"])
def test_the_texts_are_those_of_the_objective(prompt):
    """Of a blank prompt, too: the word alone, with nothing behind it."""
    objective = Objective(positive=WORDS, negative=NEGATIVE)
    columns = ask_for(TinyReward(), prompt, WORDS, NEGATIVE)
    asked = {side: {column.text for column in columns if column.side == side} for side in ("positive", "negative")}
    texts = [objective.texts([prompt], update) for update in range(6)]
    assert asked == {"positive": {p for (p,), _ in texts}, "negative": {n for _, (n,) in texts}}
    assert all(text == text.strip() for text in set.union(*asked.values()))
    plain = [Column("prompt", PROMPT, "plain")] if prompt.strip() else []
    assert columns[: len(plain)] == plain
    assert [column.title for column in columns[len(plain) :]] == [*WORDS, *NEGATIVE]


def test_words_alone_and_a_prompt_alone():
    assert [column.text for column in ask_for(TinyReward(), "", ("Real",))] == ["Real"]
    assert ask_for(TinyReward(), PROMPT) == [Column("prompt", PROMPT)]


def test_a_reward_without_text_has_one_column_called_after_it():
    assert ask_for(Sharpness(), PROMPT, WORDS, NEGATIVE) == [Column("Sharpness", PROMPT)]
    assert ask_for(Sharpness(), "") == [Column("Sharpness", "")]


def test_questions_that_can_not_be_asked():
    with pytest.raises(ValueError, match="TinyReward.*neither a prompt nor a word"):
        ask_for(TinyReward(), " \n")
    with pytest.raises(ValueError, match=r"\['Flat'\].*no words for them to stand against"):
        ask_for(TinyReward(), PROMPT, (), ("Flat",))
    with pytest.raises(ValueError, match="100 words.*up to 99"):
        ask_for(TinyReward(), "", ["a"] * 60, ["b"] * 40)
    assert len(ask_for(TinyReward(), PROMPT, ["a"] * 59, ["b"] * 40)) == 100


# Scores and ranking


@pytest.mark.parametrize("kind", [TinyReward, ScoreAlone])
def test_scores_and_ranking_are_those_of_asking_one_by_one(kind):
    images = pictures(7)
    table = table_of(kind(), images)
    plain = one_by_one(kind(), images, [PROMPT])
    positive, negative = (one_by_one(kind(), images, texts_of(words)) for words in (WORDS, NEGATIVE))
    torch.testing.assert_close(table.values, torch.cat([plain, positive, negative], 1))
    gap = positive.mean(1) - negative.mean(1)
    torch.testing.assert_close(table.merit.float(), gap)
    assert table.ranking == sorted(range(7), key=lambda i: -gap[i])


def test_without_negative_words_the_mean_of_the_words_ranks_and_without_words_the_prompt():
    images = pictures(5)
    by_words = table_of(TinyReward(), images, negative=())
    by_prompt = table_of(TinyReward(), images, (), ())
    torch.testing.assert_close(by_words.merit, by_words.values[:, 1:].double().mean(1))
    torch.testing.assert_close(by_prompt.merit, by_prompt.values[:, 0].double())
    one = table_of(TinyReward(), images, ("Real",), ())
    assert [t.merit_name for t in (by_words, by_prompt, one)] == ["mean of 3 words", "prompt", "Real"]


@pytest.mark.parametrize("kind", [TinyReward, ScoreAlone])
def test_parts_change_nothing(kind, monkeypatch):
    images = pictures(11)
    done = []
    whole = table_of(kind(), images)
    monkeypatch.setattr(reward_table, "PICTURES_AT_ONCE", 4)
    parts = table_of(kind(), images, on_progress=done.append)
    torch.testing.assert_close(parts.values, whole.values)
    assert done == [4, 4, 3]


def test_large_pictures_come_one_at_a_time(monkeypatch):
    monkeypatch.setattr(reward_table, "PIXELS_AT_ONCE", 250)
    for images, batches in ((pictures(3), [2, 1]), (pictures(3, 20, 20), [1, 1, 1])):
        reward = ScoreAlone()
        table_of(reward, images, ("Real",), (), prompt="")
        assert reward.batches == batches


def test_all_words_share_one_pass_over_the_pictures():
    reward = TinyReward()
    table_of(reward, pictures(16))
    assert len(reward.asked) == 1 and len(reward.asked[0]) == 6


def test_texts_are_prepared_together_before_the_first_picture():
    class Prepared(TinyReward):
        def prepare(self, texts):
            assert not self.asked
            self.prepared = texts

    reward = Prepared()
    table_of(reward, pictures(2), ("Real",), ("Flat",))
    assert reward.prepared == [PROMPT, f"Real. {PROMPT}", f"Flat. {PROMPT}"]


def test_what_on_progress_raises_ends_the_work(monkeypatch):
    monkeypatch.setattr(reward_table, "PICTURES_AT_ONCE", 1)
    reward = ScoreAlone()

    def cancel(done):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        table_of(reward, pictures(9), ("Real",), (), prompt="", on_progress=cancel)
    assert len(reward.batches) == 1


def test_scores_that_are_no_numbers_come_last_and_are_named():
    table = table_of(Fixed([0.5, math.nan, 0.75, math.inf, 0.5]), pictures(5))
    assert table.ranking == [2, 0, 4, 1, 3]
    assert table.lines() == [
        "1. picture 3: 0.750 (Fixed)",
        "2. picture 1: 0.500 (Fixed)",
        "3. picture 5: 0.500 (Fixed)",
        "4. picture 2: NaN (Fixed)",
        "5. picture 4: +inf (Fixed)",
    ]
    assert table_of(Fixed([0.5] * 90), pictures(90)).ranking == list(range(90))
    assert table_of(Fixed([math.nan]), pictures(1)).lines() == ["1. picture 1: NaN (Fixed)"]


def test_lines_tell_pictures_apart_in_any_unit():
    def lines(values):
        return [line.split()[3] for line in Table([Column("a", "a")], torch.tensor(values)[:, None]).lines()]

    assert lines([0.27411, 0.27444]) == ["0.274440", "0.274110"]
    assert lines([21.2, 19.9]) == ["21.20", "19.90"]
    assert lines([-250.0, 1250.0]) == ["1250", "-250"]
    assert lines([0.25]) == ["0.2500"]
    assert lines([0.0]) == ["0.00"]
    assert lines([3e7]) == ["3e+07"]


def test_no_pictures():
    with pytest.raises(ValueError, match=r"no pictures.*\(0, 12, 10, 3\)"):
        table_of(TinyReward(), pictures(0))


def test_a_reward_of_the_wrong_shape_is_named():
    class Mean:
        def score(self, images, texts):
            return images.mean()

    with pytest.raises(ValueError, match=r"The score of Mean gave \(\) for 2 images"):
        table_of(Mean(), pictures(2))


def test_grey_and_alpha():
    grey = pictures(2, channels=1)
    colour = pictures(2)
    alike = table_of(TinyReward(), grey.expand(-1, -1, -1, 3)).values
    torch.testing.assert_close(table_of(TinyReward(), grey).values, alike)
    with_alpha = torch.cat([colour, grey], -1)
    torch.testing.assert_close(table_of(TinyReward(), with_alpha).values, table_of(TinyReward(), colour).values)
    with pytest.raises(ValueError, match=r"of shape \("):
        table_of(TinyReward(), pictures(2, channels=2))


# Where words look


def test_the_gradient_is_that_of_the_score():
    image = pictures(1).movedim(-1, 1)
    torch.testing.assert_close(pixel_gradient(ScoreAlone(), image, "a"), direction("a", image[0]))
    straight = image.clone().requires_grad_()
    TinyReward().score(straight, ["a"]).sum().backward()
    torch.testing.assert_close(pixel_gradient(TinyReward(), image, "a"), straight.grad[0])


def gaussian(size, sigma):
    """(size, size): row i says how pixel i of a smoothed line is made of the others."""
    places = torch.arange(float(size))
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
    weights[(places[:, None] - places).abs() > math.ceil(3 * sigma)] = 0
    return weights / weights.sum(1, keepdim=True)


def test_heat_is_the_smoothed_sum_over_colours():
    gradient = numbers(0, 3, 40, 24).float()
    sizes = gradient.abs().sum(0).view(20, 2, 12, 2).mean((1, 3))  # halved
    sigma = reward_table.BLUR * 20
    smooth = gaussian(20, sigma) @ sizes @ gaussian(12, sigma).T
    torch.testing.assert_close(heat(gradient, (20, 12)), smooth / smooth.max())
    assert not heat(torch.zeros(3, 8, 8), (4, 4)).any()
    strange = gradient.clone()
    without = gradient.clone()
    strange[:, 3, 4] = math.inf
    strange[:, 30, 7] = math.nan
    without[:, 3, 4] = 0
    without[:, 30, 7] = 0
    assert torch.equal(heat(strange, (20, 12)), heat(without, (20, 12)))


def test_every_column_of_the_best_pictures_and_the_gap_have_a_map():
    images = pictures(6, 16, 16)
    done = []
    reward = ScoreAlone()
    table = table_of(reward, images)
    saliency = find_saliency(reward, images, table, (16, 16), on_progress=done.append)
    assert list(saliency) == table.ranking[: reward_table.MAPPED] and sum(done) == 4 * 6
    image = images[0].movedim(-1, 0)
    directions = {text: direction(text, image) for text in texts_of((*WORDS, *NEGATIVE))}
    gap = sum(directions[t] for t in texts_of(WORDS)) / 3 - sum(directions[t] for t in texts_of(NEGATIVE)) / 2
    expected = [direction(PROMPT, image), *directions.values(), gap]
    for maps in saliency.values():  # this reward is linear: it looks at the same places in every picture
        torch.testing.assert_close(maps, torch.stack([heat(g, (16, 16)) for g in expected]))


def test_a_word_that_looks_at_one_corner_lights_that_corner():
    class Corner:
        def score(self, images, texts):
            return images[:, 1, :4, -4:].mean((1, 2))

    images = pictures(1, 32, 32)
    table = table_of(Corner(), images, (), ())
    (saliency,) = find_saliency(Corner(), images, table, (64, 64))[0]
    assert saliency[:8, -8:].min() > 0.3 and saliency.max() == 1
    assert saliency[20:].max() < 1e-3 and saliency[:, :44].max() < 1e-3


class Silent:
    """Its scores have no gradient."""

    def score(self, images, texts):
        return images.detach().mean((1, 2, 3))


class Blind:
    """Its scores have a gradient, but not at the pixels."""

    def score(self, images, texts):
        return torch.ones(len(images), requires_grad=True) * 2


@pytest.mark.parametrize("reward", [Silent(), Blind()])
def test_a_reward_without_a_gradient_at_the_pixels_has_no_maps(reward):
    images = pictures(2)
    assert find_saliency(reward, images, table_of(reward, images), (8, 8)) == {}


class Lazy(TinyReward):
    """Makes what it needs when it is first asked, and keeps it."""

    weight = None

    def score_many(self, images, *texts):
        self.weight = torch.full((1,), 2.0) if self.weight is None else self.weight
        return super().score_many(images * self.weight, *texts)


@pytest.mark.parametrize("reward, side", [(TinyReward(), 8), (TinyReward(), 1), (Lazy(), 8)])
def test_inside_inference_mode(reward, side):
    """ComfyUI runs its nodes under inference_mode, and the pictures were made in it."""
    with torch.inference_mode():
        images = pictures(3, side, side) * 1.0
        assert images.is_inference()
        table = table_of(reward, images)
        saliency = find_saliency(reward, images, table, (8, 8))
    outside = pictures(3, side, side)
    expected = table_of(reward, outside)
    torch.testing.assert_close(table.values, expected.values)
    torch.testing.assert_close(saliency, find_saliency(reward, outside, expected, (8, 8)))


# The picture


def flat(*colours, height=8, width=8):
    """One picture of each colour (0 to 255)."""
    return (torch.tensor(colours).float() / 255)[:, None, None].expand(-1, height, width, -1)


def where(picture, colour):
    """Rows and columns, each (first, last), of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(-1))
    assert len(rows), f"{colour} is nowhere"
    return (rows.min(), rows.max()), (columns.min(), columns.max())


def draw(images, values, columns=PLAIN, saliency=None):
    values = torch.tensor(values, dtype=torch.float32).view(len(images), len(columns))
    return draw_table(images, Table(list(columns), values), saliency or {}, PROMPT, "Toy")


def test_thumbnails_stand_in_the_order_of_the_ranking():
    colours = [(250, 10, 20), (20, 240, 10), (10, 20, 230), (200, 0, 200)]
    picture = draw(flat(*colours), [0.1, 0.4, 0.2, 0.3])
    places = [where(picture, colour) for colour in colours]
    tops = [rows[0] for rows, _ in places]
    assert sorted(range(4), key=lambda i: tops[i]) == [1, 3, 2, 0]
    for (top, bottom), (left, right) in places:
        assert (bottom - top + 1, right - left + 1) == (SMALL, SMALL)
        block = np.asarray(picture)[top : bottom + 1, left : right + 1]
        assert (block == block[0, 0]).all()
    assert len({columns for _, columns in places}) == 1


@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (3, 300), (300, 3), (1, 5000), (600, 400), (2000, 3000)])
def test_thumbnails_of_every_shape(height, width):
    picture = draw(flat((250, 10, 20), height=height, width=width), [0.5])
    (top, bottom), (left, right) = where(picture, (250, 10, 20))
    expected = thumbnail_size(torch.empty(1, height, width, 3), SMALL)
    assert (bottom - top + 1, right - left + 1) == expected
    assert max(expected) == SMALL and min(expected) == max(1, round(SMALL * min(height, width) / max(height, width)))


def test_a_picture_is_seen_as_it_is():
    """Its own pixels, enlarged without smoothing; NaN is black, grey is grey, alpha is left out."""
    image = pictures(1, 4, 4, 4)
    image[0, 1, 2] = math.nan
    expected = (image[0, ..., :3].nan_to_num() * 255).round().byte().numpy().repeat(SMALL // 4, 0).repeat(SMALL // 4, 1)
    sheet = np.asarray(draw(image, [0.5]))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, expected.shape)[..., 0, :, :, :]
    corner = np.nonzero((windows[:, :, 0, 0] == expected[0, 0]).all(-1))
    assert any((windows[y, x] == expected).all() for y, x in zip(*corner))
    grey = draw(torch.full((1, 4, 4, 1), 0.4), [0.5])
    assert where(grey, (102, 102, 102))


def test_size_of_the_picture():
    words = [Column(word, word, "positive") for word in ("a", "b", "c", "d", "e", "f")]
    one, two = (draw(flat(*[(9, 9, 9)] * n), [0.5] * (6 * n), words).size for n in (1, 2))
    assert one[0] == two[0] and SMALL < two[1] - one[1] < SMALL + 40
    eight = [*words, Column("g", "g", "positive"), Column("h", "h", "negative")]
    wide = draw(flat((9, 9, 9)), [0.5] * 8, eight).size
    assert wide[0] - one[0] == 3 * table_picture.CELL  # two more words and the words-gap


def test_no_more_than_16_are_shown_and_the_rest_is_told():
    colours = [(i, 250 - i, 3 * i) for i in range(20)]
    picture = draw(flat(*colours), list(range(20)))
    for colour in colours[4:]:
        where(picture, colour)
    for colour in colours[:4]:
        assert not (np.asarray(picture) == colour).all(-1).any()
    table = Table([Column("prompt", PROMPT)], torch.arange(20.0)[:, None])
    assert "The best 16 of 20 pictures; the other 4 are in the ranking." in table_picture._notes(table, {}, "Toy", 600)


def runs(picture, colour):
    """Lengths of the bars of this colour, from top to bottom; of what is less high than a bar, nothing."""
    matches = (np.asarray(picture) == colour).all(-1)
    lengths = [row.sum() for row in matches]
    tall = [lengths[y] for y in range(2, len(lengths)) if lengths[y] and lengths[y] == lengths[y - 1] == lengths[y - 2]]
    return [length for i, length in enumerate(tall) if i == 0 or tall[i - 1] != length]


def test_bars_go_from_the_lowest_to_the_highest_of_the_table():
    picture = draw(flat(*[(255, 255, 255)] * 4), [3.0, 2.0, 1.5, 1.0])
    assert runs(picture, GREY) == pytest.approx([LARGE, 0.51 * LARGE, 0.265 * LARGE, 0.02 * LARGE], abs=2)
    alike = draw(flat(*[(255, 255, 255)] * 2), [3.0, 3.0])
    assert runs(alike, GREY) == [LARGE]


def test_the_gap_goes_right_for_words_and_left_for_negative_words():
    columns = [Column("a", "a", "positive"), Column("b", "b", "negative")]
    picture = draw(flat((255, 255, 255), (255, 255, 255)), [[0.8, 0.4], [0.5, 0.7]], columns)
    middle = table_picture._cell(2) + LARGE / 2
    rows = np.asarray(picture)[:, table_picture._cell(2) - 4 :]
    (_, right) = where(rows, BLUE)
    (_, left) = where(rows, ORANGE)
    right, left = (np.array(side) + table_picture._cell(2) - 4 for side in (right, left))
    assert right.tolist() == pytest.approx([middle, middle + LARGE / 2], abs=2)
    assert left.tolist() == pytest.approx([middle - LARGE / 4, middle], abs=2)  # half the other gap


def test_the_star_is_at_the_highest_and_under_a_negative_word_at_the_lowest():
    values = torch.tensor([0.3, math.nan, 0.5, 0.1])
    assert table_picture.best_of(values, Column("a", "a", "positive")) == 2
    assert table_picture.best_of(values, Column("a", "a", "negative")) == 3
    assert table_picture.best_of(values[:2], Column("a", "a")) is None
    assert table_picture.best_of(torch.ones(3), Column("a", "a")) is None
    columns = [Column("a", "a", "positive"), Column("b", "b", "negative")]
    sheet = draw(flat((9, 9, 9), (8, 8, 8)), [[0.5, 0.5], [0.2, 0.4]], columns)
    golden = (np.asarray(sheet) == (0xFF, 0xF3, 0xCF)).all(-1)
    for best, c in (((9, 9, 9), 0), ((8, 8, 8), 1)):
        (top, bottom), _ = where(sheet, best)
        (rows, _) = np.nonzero(golden[:, table_picture._cell(c) : table_picture._cell(c + 1) - 8])
        assert top <= rows.min() and rows.max() <= bottom


def test_maps_lie_in_the_columns_of_their_words_beside_the_best():
    columns = [Column("a", "a", "positive"), Column("b", "b", "positive")]
    saliency = torch.zeros(2, LARGE, LARGE)
    saliency[0, :10, :10] = 1.0  # "a" looks at the upper left
    saliency[1, -10:, -10:] = 1.0  # "b" at the lower right
    white = flat((255, 255, 255), (250, 0, 0))
    sheet = np.asarray(draw(white, [[0.5, 0.5], [0.1, 0.1]], columns, {0: saliency}))
    (top, _), _ = where(sheet, (153, 153, 153))  # what nothing looks at is grey
    cells = [sheet[top : top + LARGE, x : x + LARGE].astype(int) for x in map(table_picture._cell, (0, 1))]
    bright = [(cell != 153).any(-1) for cell in cells]
    assert bright[0][:10, :10].all() and bright[0].sum() == 100
    assert bright[1][-10:, -10:].all() and bright[1].sum() == 100
    assert (sheet[top : top + LARGE, table_picture._cell(-1) :][:, :LARGE] == 255).all()  # the picture itself
    (first, last), _ = where(sheet, (250, 0, 0))
    assert first > top + LARGE and last - first + 1 == SMALL  # the second best comes without


def test_words_that_look_like_formulas_or_never_end():
    columns = [Column(title, title, "positive") for title in ("$x_$", "$\\frac$", "w" * 90, "a b " * 30, "%{}", " ")]
    picture = draw(flat((9, 9, 9), (8, 8, 8)), [[0.5] * 6, [math.nan] * 6], columns)
    assert picture.width == 2 * 20 + 88 + 7 * table_picture.CELL - table_picture.SPACE
    assert draw_table(flat((9, 9, 9)), Table(columns[:1], torch.ones(1, 1)), {}, "$ \\oops $ " * 90, "Toy").width == 600


def test_wrapping():
    assert wrap("a long phrase of words", 10, 2) == ["a long", "phrase..."]
    chinese = "\u81ea\u7136\u5149" * 4
    assert wrap(chinese, 10, 3) == [chinese[:5], chinese[5:10], chinese[10:]]
    assert wrap("", 10, 2) == [""]
