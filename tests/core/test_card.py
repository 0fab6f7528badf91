"""What users call their rewards and runs is drawn as it is, on every picture with text of theirs."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from srpo_core.report.card import draw_card, with_text
from srpo_core.report.compare import Comparison, PictureScores
from srpo_core.report.compare_picture import draw_comparison
from srpo_core.report.reward_table import Column, Table
from srpo_core.report.sheet import printable
from srpo_core.report.table_picture import draw_table

IMAGES = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
NAMES = [
    "$x",
    "a $b$ c",
    r"\frac{1",
    r"$\frac{$",
    "$$",
    "^_",
    "_hidden",
    "100%",
    "{0}",
    "\ud800",
    "a\x00\nb",
    "x" * 500,
    "",
]
letters = st.text(st.one_of(st.sampled_from("$\\_^{}%#&~ab"), st.characters()), max_size=30)


def history(name: str) -> list[dict]:
    keys = ("reward_positive", "reward_negative", "words_gap", f"reward_positive/{name}", f"words_gap/{name}")
    return [{"update": i + 1, "loss": 1.0, **{key: 0.1 * i for key in keys}} for i in range(3)]


def card(name: str):
    return draw_card(IMAGES, IMAGES, history(name), f"{name}, update 3")


def table(name: str):
    columns = [Column(name, name, "positive"), Column("other", "other", "negative")]
    return draw_table(IMAGES, Table(columns, torch.tensor([[0.1, 0.2], [0.3, 0.1]]).double()), {}, name, name)


def comparison(name: str):
    scores = PictureScores(name, torch.tensor([[0.1, 0.2], [0.3, 0.1]]).double(), note=name)
    return draw_comparison(Comparison([name, "other"], [7], IMAGES, IMAGES, scores), note=name)


PICTURES = [card, table, comparison]


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_is_drawn(draw, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font of this machine has
        picture = draw(name)
    assert min(picture.size) > 100 and np.asarray(picture).std() > 1


@given(letters)
def test_what_is_printable_is_drawn_as_it_is(name):
    shown = printable(name)
    assert len(shown) == len(name) and shown.isprintable()
    assert printable(shown) == shown == "".join(new if old.isprintable() else "?" for old, new in zip(name, shown))


@pytest.mark.parametrize("draw", PICTURES)
def test_a_dollar_is_a_dollar(draw):
    """Two names that mathematics would show alike are two pictures."""
    pictures = [np.asarray(draw(name)) for name in ("$a$b", "a$b$")]
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    """Matplotlib leaves such labels out."""
    with_name, without = (np.asarray(card(name)) for name in ("_aesthetics", "_"))
    assert (with_name != without).any()


def test_sentences_stand_beneath_the_whole_picture():
    picture = Image.fromarray(np.full((40, 80, 3), 99, np.uint8))
    short, long = (np.asarray(with_text(picture, "It was stopped. " * count)) for count in (1, 20))
    assert short.shape[1] == long.shape[1] == 960 and len(long) > len(short) > 480
    assert (short[:480] == 99).all() and (long[:480] == 99).all()
    for card in (short, long):
        inked = (card[480:] < 128).all(-1)
        assert inked.any() and not inked[:, -5:].any() and not inked[-5:].any()
