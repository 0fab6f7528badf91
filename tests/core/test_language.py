"""What nodes say in other languages: every sentence of the sources is translated, with the same values in it."""

import ast
import json
from collections.abc import Iterator
from string import Formatter

import pytest
from find_host import ROOT

from srpo_core.language import called, in_english, names, plural, say, say_many, use
from srpo_core.report.card import text_on_card
from srpo_core.report.sheet import can_draw, letters_of

FILES = {file.parent.name: file for file in (ROOT / "locales").glob("*/summaries.json")}
TRANSLATIONS = {language: json.loads(file.read_text("utf-8")) for language, file in FILES.items()}
TEMPLATES = {"say": slice(0, 1), "say_many": slice(1, 3), "names": slice(None)}  # which arguments are templates


@pytest.fixture(autouse=True)
def english_afterwards():
    yield
    use(dict)


def calls() -> Iterator[tuple[str, ast.Call]]:
    for wing in ("nodes", "srpo_core"):
        for file in (ROOT / wing).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TEMPLATES
                if named and file.name != "language.py":
                    yield file.name, node


def templates() -> set[str]:
    found = set()
    for file, call in calls():
        given = call.args[TEMPLATES[call.func.id]]
        assert all(isinstance(each, ast.Constant) for each in given), f"{file}:{call.lineno} has no literal template"
        found |= {each.value for each in given}
    return found


def fields(template: str) -> list[tuple]:
    return sorted(
        (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None
    )


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_the_translation_has_every_sentence_and_no_other(language):
    assert templates() == TRANSLATIONS[language].keys()
    assert len(templates()) > 50


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_shows_the_same_values_in_the_same_formats(language):
    other = {english: text for english, text in TRANSLATIONS[language].items() if fields(english) != fields(text)}
    assert other == {}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_is_in_another_writing(language):
    assert [text for text in TRANSLATIONS[language].values() if text.isascii()] == []


def test_every_template_gets_the_values_that_it_names():
    """Counted at each call, so that no sentence fails where it is said at last, after hours of training."""
    wrong = []
    for file, call in calls():
        given = {keyword.arg for keyword in call.keywords} | ({"count"} if call.func.id == "say_many" else set())
        named = {name for each in call.args[TEMPLATES[call.func.id]] for name, *_ in fields(each.value)}
        wrong += [f"{file}:{call.lineno}"] if given != named else []
    assert wrong == []


def test_english_is_said_until_another_language_is_in_use():
    values = {"name": "toy {x}", "saved": 3}  # braces of a value are no field
    template = "The run srpo/{name} is kept up to update {saved}"
    english = "The run srpo/toy {x} is kept up to update 3"
    assert say(template, **values) == english
    use(lambda: TRANSLATIONS["zh"])
    assert say(template, **values) == TRANSLATIONS["zh"][template].format(**values) != english
    assert say("{n:.1f} of nothing that is translated", n=2) == "2.0 of nothing that is translated"
    with in_english():
        assert say(template, **values) == english
    assert say(template, **values) != english


@pytest.mark.parametrize("count, sentence", [(0, "0 prompts."), (1, "1 prompt."), (2, "2 prompts."), (1e4, "10,000")])
def test_one_is_said_as_one(count, sentence):
    assert say_many(int(count), "{count} prompt.", "{count:,} prompts.").startswith(sentence)


def test_a_count_in_english_has_its_noun():
    use(lambda: TRANSLATIONS["zh"])
    assert [plural(count, "prompt") for count in (0, 1, 2)] == ["0 prompts", "1 prompt", "2 prompts"]


def test_names_are_looked_up_when_they_are_said():
    """A reward may be called as it likes: what is none of them stays as it is, also with braces in it."""
    known = names("saturation", "diversity")
    assert called("saturation", known) == "saturation"
    use(lambda: TRANSLATIONS["zh"])
    assert called("saturation", known) == TRANSLATIONS["zh"]["saturation"]
    assert [called(name, known) for name in ("reward", "my {reward}")] == ["reward", "my {reward}"]


def test_a_card_has_no_letters_that_its_fonts_have_not(monkeypatch):
    """DejaVu alone has no Chinese: then its text is English, without what was said in Chinese before."""
    use(lambda: TRANSLATIONS["zh"])
    before = [say("No setting here is enough."), "-> \u2192"]

    def sentences():
        return [say("No update was finished"), "reward \u8bcd"]

    monkeypatch.setattr("srpo_core.report.sheet.fonts", lambda: ["DejaVu Sans"])
    assert not can_draw(sentences()[0])
    assert text_on_card(sentences, before) == "No update was finished reward ? -> \u2192"
    monkeypatch.setattr("srpo_core.report.sheet.letters_of", lambda *names: frozenset(range(0x10000)))
    assert text_on_card(sentences, before) == " ".join([*sentences(), *before])


def test_matplotlibs_own_font_is_known():
    letters = letters_of("DejaVu Sans")
    assert {ord("a"), 0x2192} <= letters and 0x8BCD not in letters
