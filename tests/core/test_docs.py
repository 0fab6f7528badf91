"""The node help and the translation name what the nodes have: no input is missing, none is made up.

What they have is in a list, which `tests/host/test_node_shapes.py` holds against the nodes themselves.
"""

import ast
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from find_host import ROOT

from srpo_core.report.card import CURVES

SHAPES = json.loads((ROOT / "tests/support/node_shapes.json").read_text("utf-8"))
INPUT_HEADINGS = {"en": "## Inputs", "zh": "## 输入"}
TRANSLATION = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text("utf-8"))
SUMMARIES = json.loads((ROOT / "locales/zh/summaries.json").read_text("utf-8"))
READABLE = json.loads((ROOT / "locales/en/nodeDefs.json").read_text("utf-8"))


def input_names(inputs: list[dict], before: str = "") -> list[str]:
    """Their names, and after a dynamic combo those that belong to its choices, each once: `adapter`, `adapter.rank`."""
    names = []
    for each in inputs:
        name = before + each["id"]
        names.append(name)
        if each["type"] == "COMFY_DYNAMICCOMBO_V3":
            names += chain.from_iterable(input_names(choice["inputs"], f"{name}.") for choice in each["options"])
    return list(dict.fromkeys(names))


def shown(name: str) -> str:
    """What an input is called on its node."""
    return name.rpartition(".")[2]


def key_of(name: str) -> str:
    """Where the front end looks for an input's translation."""
    return name.replace(".", "_")


INPUTS = {node: input_names(shape["inputs"]) for node, shape in SHAPES.items()}


def slots(node: str) -> list[str]:
    """The sockets that an input grows, by which newer front ends name them: `rewards.reward0`."""
    return [f"{each['id']}.{slot}" for each in SHAPES[node]["inputs"] for slot in each.get("slots", ())]


OUTPUTS = {node: [output["name"] for output in shape["outputs"]] for node, shape in SHAPES.items()}
PAGES = [(node, language) for node in SHAPES for language in INPUT_HEADINGS]


def page(node: str, language: str) -> str:
    return (ROOT / "web/docs" / node / f"{language}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    return text.split(heading + "\n", 1)[1].split("\n## ", 1)[0]


def test_every_node_is_listed():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "nodes").glob("*.py"))
    assert set(SHAPES) == set(re.findall(r'node_id="(\w+)"', source))


@pytest.mark.parametrize("node, language", PAGES)
def test_the_table_of_inputs_is_the_nodes(node, language):
    rows = re.findall(r"^\| (.+?) \|", section(page(node, language), INPUT_HEADINGS[language]), re.MULTILINE)
    named = list(chain.from_iterable(re.findall(r"`(\w+)`", first_cell) for first_cell in rows))
    assert sorted(named) == sorted(map(shown, INPUTS[node]))


@pytest.mark.parametrize("node, language", PAGES)
def test_a_page_names_no_input_that_no_node_has(node, language):
    """What looks like an input's id, in backticks anywhere on the page, is one of some node's."""
    ids = {shown(name) for name in chain.from_iterable(INPUTS.values())} | {"noise_seed"}
    assert {word for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page(node, language)) if word not in ids} == set()


@pytest.mark.parametrize("node", SHAPES)
def test_the_pages_name_every_output_as_it_is_shown(node):
    translated = [output["name"] for output in TRANSLATION[node]["outputs"].values()]
    for language, names in (("en", OUTPUTS[node]), ("zh", translated)):
        assert [name for name in names if name not in page(node, language)] == []


def english_names(node: str) -> dict[str, str]:
    """What inputs are called on the canvas: the id, where it is readable, else a name of the English locale."""
    named = READABLE.get(node, {}).get("inputs", {})
    return {name: named.get(key_of(name), {}).get("name", shown(name)) for name in INPUTS[node]}


@pytest.mark.parametrize("node", SHAPES)
def test_inputs_have_english_names_that_can_be_read(node):
    """Names are in a locale, not in `display_name`: that hides translations on sockets, and is not read in combos."""
    assert [name for name in english_names(node).values() if "_" in name] == []
    assert READABLE.get(node, {}).get("inputs", {}).keys() <= set(map(key_of, INPUTS[node]))


def test_the_english_names_are_of_these_nodes():
    assert READABLE.keys() <= SHAPES.keys()


@pytest.mark.parametrize("node", SHAPES)
def test_the_english_page_has_the_english_names_of_inputs(node):
    text = page(node, "en")
    rows = {
        name: f"`{shown(name)}`" + f" {named}" * (named != shown(name)) for name, named in english_names(node).items()
    }
    assert [row for row in rows.values() if row not in text] == []


@pytest.mark.parametrize("node", SHAPES)
def test_the_chinese_page_has_the_chinese_names_of_inputs(node):
    text = page(node, "zh")
    translated = {name: TRANSLATION[node]["inputs"][key_of(name)]["name"] for name in INPUTS[node]}
    assert [name for name in translated if f"`{shown(name)}` {translated[name]}" not in text] == []


def test_the_translation_is_of_these_nodes():
    assert TRANSLATION.keys() == SHAPES.keys()


@pytest.mark.parametrize("node", SHAPES)
def test_the_translation_is_whole(node):
    translation = TRANSLATION[node]
    inputs = translation.get("inputs", {})
    assert inputs.keys() == set(map(key_of, [*INPUTS[node], *slots(node)]))
    assert list(translation["outputs"]) == [str(i) for i in range(len(OUTPUTS[node]))]
    texts = [translation["display_name"], translation["description"]]
    texts += [each[field] for each in inputs.values() for field in ("name", "tooltip")]
    assert all(texts)


@pytest.mark.parametrize("node", SHAPES)
def test_outputs_with_a_tooltip_have_it_translated(node):
    explained = {str(i) for i, output in enumerate(SHAPES[node]["outputs"]) if output["explained"]}
    assert {i for i, output in TRANSLATION[node]["outputs"].items() if "tooltip" in output} == explained


def constants(file: Path) -> Iterator[str]:
    """The texts in a module, as they are once strings beside each other are joined; {} for what is filled in."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def quoted(text: str) -> list[str]:
    """What a page says that a node says: *"..."*, in its parts between dots."""
    found = re.findall(r"\*[\"“](.+?)[\"”]\*", text)
    return [part.strip() for each in found for part in each.split("...") if len(part.strip()) > 3]


def test_the_sentences_that_pages_quote_are_said():
    sources = chain.from_iterable((ROOT / wing).rglob("*.py") for wing in ("nodes", "srpo_core"))
    said = "\n".join([*chain.from_iterable(map(constants, sources)), *SUMMARIES.values()])
    pages = [*(ROOT / "web/docs").glob("*/*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    invented = {
        (file.parent.name, file.name, part)
        for file in pages
        for part in quoted(file.read_text("utf-8"))
        if part not in said
    }
    assert invented == set()
    assert sum(len(quoted(file.read_text("utf-8"))) for file in pages) > 40


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_curve_of_the_card_is_explained(language):
    page = (ROOT / f"web/docs/SRPO_Train/{language}.md").read_text("utf-8")
    assert [title for title, _ in CURVES if f"\n| {title}" not in page] == []


@pytest.mark.parametrize("node, language", PAGES)
def test_a_page_shows_its_pictures(node, language):
    """The front end takes their paths from `web/docs`."""
    shown = re.findall(r"!\[.+?\]\((\S+?)\)", page(node, language))
    assert shown and [path for path in shown if not (ROOT / "web/docs" / path).is_file()] == []


def test_pictures_of_the_help_are_small():
    files = [file for kind in ("png", "jpg") for file in (ROOT / "web/docs").rglob(f"*.{kind}")]
    assert sum(file.stat().st_size for file in files) < 1_500_000


@pytest.mark.parametrize("node, language", PAGES)
def test_nothing_on_a_page_is_taken_for_html(node, language):
    """The front end's Markdown drops what stands in angle brackets, but in code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page(node, language), flags=re.DOTALL)
    assert re.findall(r"<[^>\s=]", text) == []
