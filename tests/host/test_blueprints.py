"""The blueprints that ship, as the host lists them; `test_browser.py` adds and runs them."""

import json
from pathlib import Path

import pytest
from blueprints import fold
from shipped_blueprints import BLUEPRINTS

FOLDER = Path(__file__).parents[2] / "subgraphs"


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_it_is_what_the_generator_makes_of_today_s_schemas(host, name):
    """Else: `.venv/bin/python harness/make_workflows.py`."""
    made = fold(name, BLUEPRINTS[name], host.object_info())
    assert json.loads((FOLDER / f"{name}.json").read_text("utf-8")) == made


def test_the_host_lists_them(host):
    listed = host.get("/global_subgraphs").values()
    assert {each["name"] for each in listed if each["source"] == "custom_node"} == set(BLUEPRINTS)
    assert {file.stem for file in FOLDER.iterdir()} == set(BLUEPRINTS)
