"""The nodes as saved workflows know them: ids, inputs in their order, defaults and outputs are those of a list.

After a change that is meant, write the list anew: `WRITE_SHAPES=1 .venv/bin/pytest tests/host/test_node_shapes.py`.
"""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest

SHAPES = Path(__file__).parents[1] / "support/node_shapes.json"
MOST_WIDGETS = 10
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
SUBJECTS = ("The", "A", "An", "These", "All", "Both", "Another", "FLUX", "How", "Which", "What", "Where", "Whether")
HOST = "what the host has"
VARYING = {  # the options of these combos are the machine's files, or the host's samplers
    ("SRPO_Trainer", "start_lora"),
    ("SRPO_LoadReward", "file"),
    ("SRPO_LoadReward", "backbone"),
    ("SRPO_Prompts", "file"),
    ("SRPO_Photos", "folder"),
    ("SRPO_Photos", "references"),
    ("SRPO_Rollouts", "sampler_name"),
    ("SRPO_Rollouts", "scheduler"),
    ("SRPO_Previews", "sampler_name"),
    ("SRPO_Previews", "scheduler"),
}


def shape_of(schema) -> dict:
    """What a workflow knows of a node."""
    outputs = [
        {"name": each.display_name, "type": each.io_type, "list": each.is_output_list, "explained": bool(each.tooltip)}
        for each in schema.outputs
    ]
    return {"inputs": [input_shape(schema.node_id, each) for each in schema.inputs], "outputs": outputs}


def input_shape(node: str, declared) -> dict:
    """An input, with its default, range and choices if it has them; each choice of a dynamic combo has inputs."""
    shape = {"id": declared.id, "type": declared.io_type, "optional": declared.optional}
    for key in ("default", "min", "max"):
        if getattr(declared, key, None) is not None:
            shape[key] = getattr(declared, key)
    if declared.io_type == "COMBO":
        shape["options"] = HOST if (node, declared.id) in VARYING else declared.options
    if declared.io_type == "COMFY_AUTOGROW_V3":
        shape["slots"] = declared.template.names
    if declared.io_type == "COMFY_DYNAMICCOMBO_V3":
        shape["options"] = [
            {"choice": option.key, "inputs": [input_shape(node, each) for each in option.inputs]}
            for option in declared.options
        ]
    return shape


@pytest.fixture(scope="module")
def schemas(pack):
    extension = asyncio.run(pack("nodes").comfy_entrypoint())
    return [node.define_schema() for node in asyncio.run(extension.get_node_list())]


@pytest.fixture(scope="module")
def shapes(schemas):
    """The shape of every node, by its id."""
    return {schema.node_id: shape_of(schema) for schema in schemas}


def test_the_nodes_have_the_listed_shape(shapes):
    if os.environ.get("WRITE_SHAPES"):
        SHAPES.write_text(json.dumps(shapes, indent=1) + "\n", "utf-8")
    assert shapes == json.loads(SHAPES.read_text("utf-8"))


def widgets(inputs: list[dict]) -> list[str]:
    """What stands on a node as it opens: a dynamic combo, and what belongs to its first choice."""
    found = []
    for each in inputs:
        found += [each["id"]] if each["type"] in WIDGETS else []
        if each["type"] == "COMFY_DYNAMICCOMBO_V3":
            found += widgets(each["options"][0]["inputs"])
    return found


def test_a_node_opens_with_few_widgets(shapes):
    opened = {node: widgets(shape["inputs"]) for node, shape in shapes.items()}
    assert {node: names for node, names in opened.items() if len(names) > MOST_WIDGETS} == {}


def tooltips(inputs: list) -> list[str | None]:
    found = []
    for each in inputs:
        found.append(each.tooltip)
        if each.io_type == "COMFY_DYNAMICCOMBO_V3":
            found += [tip for option in each.options for tip in tooltips(option.inputs)]
    return found


def test_tooltips_are_sentences_that_begin_with_what_they_are_about(schemas):
    """Not "Of the sampler.", but "The scheduler of the sampler."; outputs have one, too."""
    tips = {schema.node_id: tooltips([*schema.inputs, *schema.outputs]) for schema in schemas}
    sentence = re.compile(rf"({'|'.join(SUBJECTS)}) .*\.", re.DOTALL)
    assert {
        node: wrong
        for node, all_of in tips.items()
        if (wrong := [t for t in all_of if not sentence.fullmatch(t or "")])
    } == {}


def texts(inputs: list) -> list:
    """The boxes of several lines, also in choices of dynamic combos."""
    found = [each for each in inputs if getattr(each, "multiline", False)]
    options = [
        option for each in inputs for option in getattr(each, "options", None) or () if hasattr(option, "inputs")
    ]
    return found + [each for option in options for each in texts(option.inputs)]


def test_a_box_of_several_lines_says_what_it_is_for(schemas):
    """The canvas shows no name beside one."""
    boxes = [(schema.node_id, box) for schema in schemas for box in texts(schema.inputs)]
    assert len(boxes) >= 8
    assert [(node, box.id) for node, box in boxes if not box.placeholder] == []


def test_a_tooltip_names_no_node_that_does_not_exist(schemas):
    known = {schema.display_name for schema in schemas}
    tips = [tip for schema in schemas for tip in tooltips([*schema.inputs, *schema.outputs])]
    named = {name for tip in tips for name in re.findall(r"SRPO (?:[A-Z][a-z]+ ?)+", tip)}
    assert {name.strip() for name in named} <= known


def test_every_node_is_found_by_what_people_type(schemas):
    found = {
        schema.node_id: {word for alias in schema.search_aliases for word in alias.lower().split()}
        for schema in schemas
    }
    assert {node for node, words in found.items() if len(words) < 3} == set()
    typed = ("rlhf", "reward", "lora", "realism", "srpo", "hps", "pickscore", "fine-tune", "aesthetic", "dataset")
    assert {word for word in typed if not any(word in words for words in found.values())} == set()
