"""The node help and the translation name what the node schemas have: no input is missing, none is made up."""

import ast
import json
import re
from itertools import chain

import pytest
from find_host import ROOT

TREES = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "nodes").glob("*.py"))]
FUNCTIONS = {f.name: f for tree in TREES for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
INPUT_HEADINGS = {"en": "## Inputs", "zh": "## 输入"}
TRANSLATION = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text("utf-8"))


def listed(schema: ast.Call, keyword: str) -> list[ast.Call]:
    """The calls that make a schema's inputs or outputs; `*f()` stands for what f returns."""
    value = next((k.value for k in schema.keywords if k.arg == keyword), ast.List([]))
    calls = []
    for item in value.elts:
        if isinstance(item, ast.Starred):
            returned = FUNCTIONS[item.value.func.id].body[-1]
            calls += returned.value.elts
        else:
            calls.append(item)
    return calls


def schemas() -> dict[str, ast.Call]:
    """Every node's `io.Schema(...)`, by its id."""
    calls = (c for tree in TREES for c in ast.walk(tree) if isinstance(c, ast.Call))
    found = (c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "Schema")
    return {k.value.value: c for c in found for k in c.keywords if k.arg == "node_id"}


SCHEMAS = schemas()
INPUTS = {node: [call.args[0].value for call in listed(schema, "inputs")] for node, schema in SCHEMAS.items()}
OUTPUTS = {
    node: [k.value.value for call in listed(schema, "outputs") for k in call.keywords if k.arg == "display_name"]
    for node, schema in SCHEMAS.items()
}
PAGES = [(node, language) for node in SCHEMAS for language in INPUT_HEADINGS]


def page(node: str, language: str) -> str:
    return (ROOT / "web/docs" / node / f"{language}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    return text.split(heading + "\n", 1)[1].split("\n## ", 1)[0]


def test_every_node_id_was_found():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "nodes").glob("*.py"))
    assert set(SCHEMAS) == set(re.findall(r'node_id="(\w+)"', source))
    assert INPUTS["SRPO_NoisePriorInject"][-2:] == ["sigma_max", "sigma_min"]


@pytest.mark.parametrize("node, language", PAGES)
def test_the_table_of_inputs_is_the_schemas(node, language):
    rows = re.findall(r"^\| (.+?) \|", section(page(node, language), INPUT_HEADINGS[language]), re.MULTILINE)
    named = list(chain.from_iterable(re.findall(r"`(\w+)`", first_cell) for first_cell in rows))
    assert sorted(named) == sorted(INPUTS[node])


@pytest.mark.parametrize("node, language", PAGES)
def test_a_page_names_no_input_that_no_node_has(node, language):
    """What looks like an input's id, in backticks anywhere on the page, is one of some node's."""
    ids = set(chain.from_iterable(INPUTS.values())) | {"noise_seed"}
    assert {word for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page(node, language)) if word not in ids} == set()


@pytest.mark.parametrize("node", SCHEMAS)
def test_the_pages_name_every_output_as_it_is_shown(node):
    translated = [output["name"] for output in TRANSLATION[node]["outputs"].values()]
    for language, names in (("en", OUTPUTS[node]), ("zh", translated)):
        assert [name for name in names if name not in page(node, language)] == []


@pytest.mark.parametrize("node", SCHEMAS)
def test_the_chinese_page_has_the_chinese_names_of_inputs(node):
    text = page(node, "zh")
    assert [key for key in INPUTS[node] if f"`{key}` {TRANSLATION[node]['inputs'][key]['name']}" not in text] == []


def test_the_translation_is_of_these_nodes():
    assert TRANSLATION.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("node", SCHEMAS)
def test_the_translation_is_whole(node):
    translation = TRANSLATION[node]
    inputs = translation.get("inputs", {})
    assert inputs.keys() == set(INPUTS[node])
    assert list(translation["outputs"]) == [str(i) for i in range(len(OUTPUTS[node]))]
    texts = [translation["display_name"], translation["description"]]
    texts += [inputs[key][field] for key in INPUTS[node] for field in ("name", "tooltip")]
    assert all(texts)


@pytest.mark.parametrize("node", SCHEMAS)
def test_outputs_with_a_tooltip_have_it_translated(node):
    calls = listed(SCHEMAS[node], "outputs")
    explained = {str(i) for i, call in enumerate(calls) if any(k.arg == "tooltip" for k in call.keywords)}
    assert {i for i, output in TRANSLATION[node]["outputs"].items() if "tooltip" in output} == explained
