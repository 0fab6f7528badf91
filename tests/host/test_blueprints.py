"""The blueprints that ship: as the host lists them, and as they are added and run in the real front end."""

import json
from pathlib import Path

import pytest
from blueprints import fold
from shipped_blueprints import BLUEPRINTS
from test_browser import END, browser, page  # noqa: F401 (fixtures)

FOLDER = Path(__file__).parents[2] / "subgraphs"
each_blueprint = pytest.mark.parametrize("name", BLUEPRINTS)
CONNECT = """([id, inputs]) => { const node = app.graph.getNodeById(id)
    for (const [name, [from, slot]] of Object.entries(inputs))
        app.graph.getNodeById(from).connect(slot, node, node.inputs.findIndex(input => input.name === name)) }"""
SET = """([id, values]) => { const node = app.graph.getNodeById(id)
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value }"""


@each_blueprint
def test_it_is_what_the_generator_makes_of_today_s_schemas(host, name):
    """Else: `.venv/bin/python harness/make_workflows.py`."""
    made = fold(name, BLUEPRINTS[name], host.object_info())
    assert json.loads((FOLDER / f"{name}.json").read_text("utf-8")) == made


def test_the_host_lists_them(host):
    listed = host.get("/global_subgraphs").values()
    assert {each["name"] for each in listed if each["source"] == "custom_node"} == set(BLUEPRINTS)
    assert {file.stem for file in FOLDER.iterdir()} == set(BLUEPRINTS)


def add_blueprint(page, name: str) -> int:  # noqa: F811
    """The id of the node that a blueprint became, found as people do: by a double click on the canvas."""
    page.keyboard.press("Escape")
    page.evaluate("app.graph.clear()")
    page.mouse.dblclick(900, 600)
    page.wait_for_function("document.activeElement.tagName === 'INPUT'")
    page.keyboard.type(name)
    page.get_by_text(name).last.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("name => app.graph.nodes.some(node => node.title === name)", arg=name)
    return page.evaluate("app.graph.nodes[0].id")


def connect(page, target: int, inputs: dict):  # noqa: F811
    page.evaluate(CONNECT, [target, inputs])


def add(page, kind: str, inputs: dict) -> int:  # noqa: F811
    """The id of a new node of this kind, its inputs linked to (id, output)."""
    id_ = page.evaluate("kind => app.graph.add(LiteGraph.createNode(kind)).id", kind)
    connect(page, id_, inputs)
    return id_


def set_widgets(page, node: int, values: dict):  # noqa: F811
    page.evaluate(SET, [node, values])


def run(page) -> str:  # noqa: F811
    page.evaluate(END)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => window.ended", timeout=300_000)
    return page.evaluate("window.ended")


def test_flux_is_trained_by_one_node(page, host):  # noqa: F811
    blueprint = add_blueprint(page, "Train FLUX with SRPO")
    toy = add(page, "SRPO_ToyModels", {})
    connect(page, blueprint, {"model": [toy, 0], "clip": [toy, 1], "vae": [toy, 2], "reward": [toy, 3]})
    small = {"run_name": "blueprint", "updates": 1, "width": 64, "height": 64, "batch": 1}
    set_widgets(page, blueprint, small)
    add(page, "PreviewImage", {"images": [blueprint, 3]})
    assert run(page) == "execution_success"
    page.wait_for_function("() => app.graph.nodes.at(-1).imgs?.length === 8")  # four before, four after
    assert page.complaints <= page.baseline | {None}


def test_a_step_is_made_by_one_node(page, host):  # noqa: F811
    blueprint = add_blueprint(page, "One SRPO step")
    toy = add(page, "SRPO_ToyModels", {})
    trainer = add(page, "SRPO_Trainer", {"model": [toy, 0]})
    text = add(page, "CLIPTextEncode", {"clip": [toy, 1]})
    noise = add(page, "RandomNoise", {})
    empty = add(page, "EmptySD3LatentImage", {})
    set_widgets(page, trainer, {"run_name": "blueprint step"})
    set_widgets(page, text, {"text": "a red circle on grass"})
    set_widgets(page, empty, {"width": 64, "height": 64})
    set_widgets(page, blueprint, {"prompt": "a red circle on grass"})
    models = {"model": [trainer, 1], "trainer": [trainer, 0], "vae": [toy, 2], "reward": [toy, 3]}
    connect(page, blueprint, models | {"conditioning": [text, 0], "noise": [noise, 0], "latent": [empty, 0]})
    add(page, "PreviewImage", {"images": [blueprint, 3]})
    add(page, "PreviewAny", {"source": [blueprint, 1]})
    assert run(page) == "execution_success"
    assert json.loads((host.base / "output/srpo/blueprint step/run.json").read_text())["updates"] == 1
