"""Writes the workflows and blueprints that ship, from `shipped_*.py` and the schemas of a running ComfyUI.

    .venv/bin/python harness/make_workflows.py

Values that are not named there are the schemas' defaults, so a changed node can't leave a workflow behind.
"""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from find_host import ROOT, find_host
from node_widgets import least_heights, values_of
from workflow import WIDGETS, WORKFLOW_1, to_prompt

CHINESE = Path(__file__).with_name("notes_zh.json")  # what sources in cp1252 can't hold
OURS = "srpo"
VERSION = re.search('^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
NOTE = ("#432", "#653")  # colour of its title and of its body
HEADER = 30
TOP = 66  # of a group, to its first node below its header
MARGIN = 16
GAP = 40  # between nodes, with the header of the lower one
BETWEEN = 24  # groups
# A template opens with all nodes in three quarters of the window, and the canvas has no text below a zoom of 4 / 7. So
# in a window of 1600x857 they are to be read within this width and height.
READABLE = (2068, 1098)
ZOOM = 0.8
TWIN = 1000  # between the ids of a workflow and those of its Chinese twin
BLUE = "#3f789e"
GREEN = "#8A8"
OCHRE = "#b58b2a"
BROWN = "#b06634"
PURPLE = "#a1309b"


@dataclass
class Node:
    """A node of a workflow.

    inputs: values of widgets, and (key, output) for a link, by the input's name. height: at least. files: of models
    that it loads, (folder of models/, address), which the front end offers to download where they are not there.
    """

    key: str
    kind: str
    inputs: dict = field(default_factory=dict)
    title: str = ""
    height: int = 0
    files: tuple[tuple[str, str], ...] = ()


@dataclass
class Group:
    """Nodes below each other, in a frame.

    under: it stands below the one before it, which is as wide. spare: room below, where the last node grows as it shows
    its picture with Nodes 2.0; the front end makes no room for frames when it opens a template.
    """

    title: str
    color: str
    width: int
    nodes: list[Node]
    under: bool = False
    spare: int = 0


@dataclass
class Workflow:
    """A workflow: a note to read first, and beside it the groups from left to right.

    first: the note's id, the nodes have the next. The front end shows progress by the id alone, on whatever workflow is
    open, so no two share any.
    """

    note: str
    groups: list[Group]
    note_size: tuple[int, int] = (330, 720)
    note_title: str = "Read me"
    first: int = 1


def in_both_languages(workflows: dict[str, Workflow]) -> dict[str, Workflow]:
    """The workflows and their Chinese twins, by name. Raises KeyError for a text that `notes_zh.json` has not."""
    chinese = json.loads(CHINESE.read_text("utf-8"))
    twins = {f"{name}{chinese['suffix']}": _in_chinese(name, each, chinese) for name, each in workflows.items()}
    return workflows | twins


def _in_chinese(name: str, workflow: Workflow, chinese: dict) -> Workflow:
    titles = chinese["titles"] | {"": ""}
    groups = [
        replace(
            group, title=titles[group.title], nodes=[replace(node, title=titles[node.title]) for node in group.nodes]
        )
        for group in workflow.groups
    ]
    return replace(
        workflow,
        note=chinese["notes"][name],
        note_title=titles[workflow.note_title],
        groups=groups,
        first=workflow.first + TWIN,
    )


def lay_out(workflow: Workflow, schemas: dict) -> dict:
    """The workflow as the front end saves it. schemas: the host's object_info."""
    ids = numbers_of(workflow)
    entries = {workflow.first: _note(workflow)}
    groups = []
    left = workflow.note_size[0] + BETWEEN
    right = left
    bottom = 0
    for number, group in enumerate(workflow.groups, 1):
        left = left if group.under else right
        first = bottom + BETWEEN if group.under else 0
        top = first + TOP
        for node in group.nodes:
            entry = _entry(node, ids, schemas[node.kind])
            entry["pos"] = [left + MARGIN, top]
            entry["size"][0] = group.width
            entries[ids[node.key]] = entry
            top += entry["size"][1] + GAP
        bottom = top - GAP + MARGIN + group.spare
        bounding = [left, first, group.width + 2 * MARGIN, bottom - first]
        groups.append({"id": number, "title": group.title, "bounding": bounding, "color": group.color, "flags": {}})
        right = left + bounding[2] + BETWEEN
    links = list(_links(workflow, ids, entries))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, workflow.note)),
        "revision": 0,
        "last_node_id": max(entries),
        "last_link_id": len(links),
        "nodes": list(entries.values()),
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": ZOOM, "offset": [60, 80]}},
        "version": 0.4,
    }


def numbers_of(workflow: Workflow) -> dict[str, int]:
    """The nodes' ids by their keys."""
    return {node.key: number for number, node in enumerate(_nodes(workflow), workflow.first + 1)}


def _nodes(workflow: Workflow) -> Iterator[Node]:
    return (node for group in workflow.groups for node in group.nodes)


def _note(workflow: Workflow) -> dict:
    return {
        "id": workflow.first,
        "type": "MarkdownNote",
        "pos": [0, HEADER],
        "size": list(workflow.note_size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": workflow.note_title,
        "properties": {},
        "widgets_values": [workflow.note],
        "color": NOTE[0],
        "bgcolor": NOTE[1],
    }


def _entry(node: Node, ids: dict[str, int], schema: dict) -> dict:
    """The node with its widgets' values, its sockets not linked yet."""
    values = dict(values_of(node.inputs, schema["input"]))
    sockets = [{"name": name, "type": kind, "link": None} for name, kind in _sockets(node, schema["input"])]
    places = [
        {"name": name, "type": each.kind, "widget": {"name": name}, "link": None} for name, each in values.items()
    ]
    outputs = [
        {"name": name, "type": kind, "links": None} for name, kind in zip(schema["output_name"], schema["output"])
    ]
    slots = max(len(sockets), len(outputs))
    entry = {
        "id": ids[node.key],
        "type": node.kind,
        "pos": [],
        "size": [0, max(node.height, *least_heights(slots, list(values.values()), schema))],
        "flags": {},
        "order": list(ids).index(node.key) + 1,
        "mode": 0,
        "inputs": sockets + places,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [part for each in values.values() for part in each.parts],
    }
    if node.kind.startswith("SRPO_"):
        entry["properties"] |= {"cnr_id": OURS, "ver": VERSION}
    if node.files:
        entry["properties"]["models"] = [
            {"name": url.rpartition("/")[2], "url": url, "directory": folder} for folder, url in node.files
        ]
    return entry | ({"title": node.title} if node.title else {})


def _sockets(node: Node, schema: dict) -> Iterator[tuple[str, str]]:
    """(name, type) of each input that is no widget; of one that grows, those that are linked and the next."""
    for part in ("required", "optional"):
        for name, (kind, *options) in schema.get(part, {}).items():
            options = options[0] if options else {}
            if kind == "COMFY_AUTOGROW_V3":
                template = options["template"]
                (inner,) = (each for each in template["input"].values() if each)
                ((_, (inner_kind, *_)),) = inner.items()
                linked = [given for given in node.inputs if given.startswith(f"{name}.")]
                grown = [f"{name}.{template['prefix']}{i}" for i in range(len(linked) + 1)]
                yield from ((each, inner_kind) for each in grown)
            elif not isinstance(kind, list) and (kind not in WIDGETS or options.get("forceInput")):
                yield name, kind


def _links(workflow: Workflow, ids: dict[str, int], entries: dict[int, dict]) -> Iterator[list]:
    """The links, which are also written into the nodes at their ends."""
    number = 0
    for node in _nodes(workflow):
        for place, slot in enumerate(entries[ids[node.key]]["inputs"]):
            given = node.inputs.get(slot["name"])
            if not isinstance(given, tuple):
                continue
            number += 1
            source = entries[ids[given[0]]]
            output = source["outputs"][given[1]]
            output["links"] = [*(output["links"] or ()), number]
            slot["link"] = number
            yield [number, source["id"], given[1], ids[node.key], place, output["type"]]


def written(workflow: dict) -> str:
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


def main():
    import tempfile

    from blueprints import fold
    from host_server import HostServer
    from shipped_blueprints import BLUEPRINTS
    from shipped_workflows import WORKFLOWS

    with tempfile.TemporaryDirectory() as base, HostServer(find_host(), Path(base)) as host:
        schemas = host.object_info()
    for name, workflow in in_both_languages(WORKFLOWS).items():
        (ROOT / "workflows" / f"{name}.json").write_text(written(lay_out(workflow, schemas)), "utf-8")
    suffix = json.loads(CHINESE.read_text("utf-8"))["suffix"]
    for name in WORKFLOWS:
        shutil.copyfile(ROOT / "workflows" / f"{name}.jpg", ROOT / "workflows" / f"{name}{suffix}.jpg")
    for name, blueprint in BLUEPRINTS.items():
        (ROOT / "subgraphs" / f"{name}.json").write_text(written(fold(name, blueprint, schemas)), "utf-8")
    WORKFLOW_1.write_text(written(to_prompt(lay_out(WORKFLOWS["1 Toy FLUX in one minute"], schemas), schemas)), "utf-8")


if __name__ == "__main__":
    main()
