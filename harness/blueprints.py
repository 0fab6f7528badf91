"""Subgraph blueprints: workflows with open ends, which people add from the node library as one node."""

import uuid
from dataclasses import dataclass

from make_workflows import OURS, VERSION, Workflow, lay_out

INPUT_NODE = -10  # of the front end: where links from outside begin
OUTPUT_NODE = -20
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
ENDS = 180  # pixels of width that either of them has


@dataclass(frozen=True)
class Open:
    """An input or output of the blueprint. name: that people read. at: (node's key, its input or its output's number).

    An input may go to several nodes; where the first of these has a widget for it, the blueprint has it, too.
    """

    name: str
    at: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What `fold` makes one node of. description: what the node library says of it."""

    description: str
    workflow: Workflow
    inputs: list[Open]
    outputs: list[Open]


def fold(name: str, blueprint: Blueprint, schemas: dict) -> dict:
    """The blueprint as the front end saves it: one node, and what is in it. schemas: the host's object_info."""
    inner = lay_out(blueprint.workflow, schemas)
    kind = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    links = [dict(zip(LINK, link)) for link in inner["links"]]
    places = _places(blueprint.workflow, inner)
    inputs = [_input(slot, end, places, links) for slot, end in enumerate(blueprint.inputs)]
    outputs = [_output(slot, end, places, links) for slot, end in enumerate(blueprint.outputs)]
    top = {"id": 1, "type": kind, "pos": [0, 0], "size": [400, 60], "flags": {}, "order": 0, "mode": 0}
    subgraph = {
        "id": kind,
        "version": 1,
        "state": {"lastGroupId": len(inner["groups"]), "lastNodeId": inner["last_node_id"], "lastLinkId": len(links)},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT_NODE, "bounding": [-ENDS - 60, 0, ENDS, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [_right(inner) + 60, 0, ENDS, 40 + 20 * len(outputs)]},
        "inputs": [slot for slot, _ in inputs],
        "outputs": outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": inner["groups"],
        "links": links,
        "extra": {},
        "category": "SRPO",
        "description": blueprint.description,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [top | _ends(inputs, outputs) | {"title": name}],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def _places(workflow: Workflow, inner: dict) -> dict[str, dict]:
    """The laid-out nodes by their keys."""
    keys = [node.key for group in workflow.groups for node in group.nodes]
    return dict(zip(keys, inner["nodes"][1:]))  # the first is the note


def _input(slot: int, end: Open, places: dict[str, dict], links: list[dict]) -> tuple[dict, list]:
    """(the subgraph's input, the values of its widget or none), linked to the nodes that it feeds."""
    numbers = []
    for key, name in end.at:
        place, target = next((place, each) for place, each in enumerate(places[key]["inputs"]) if each["name"] == name)
        target["link"] = len(links) + 1
        numbers.append(target["link"])
        link = (target["link"], INPUT_NODE, slot, places[key]["id"], place, target["type"])
        links.append(dict(zip(LINK, link)))
    key, name = end.at[0]
    first = next(each for each in places[key]["inputs"] if each["name"] == name)
    entry = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"input {end.name}")),
        "name": end.name,
        "type": first["type"],
        "linkIds": numbers,
        "pos": [-80, 20 + 20 * slot],
    }
    return entry, [_value(places[key], name)] if "widget" in first else []


def _value(entry: dict, name: str):
    """What the widget of this name is set to, of a node where no widget before it takes two values."""
    widgets = [slot["name"] for slot in entry["inputs"] if "widget" in slot]
    return entry["widgets_values"][widgets.index(name)]


def _output(slot: int, end: Open, places: dict[str, dict], links: list[dict]) -> dict:
    """The subgraph's output, linked to the node that gives it."""
    ((key, number),) = end.at
    output = places[key]["outputs"][number]
    link = (len(links) + 1, places[key]["id"], number, OUTPUT_NODE, slot, output["type"])
    links.append(dict(zip(LINK, link)))
    output["links"] = [*(output["links"] or ()), len(links)]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"output {end.name}")),
        "name": end.name,
        "type": output["type"],
        "linkIds": [len(links)],
        "pos": [0, 20 + 20 * slot],
    }


def _right(inner: dict) -> int:
    """Where the last group ends."""
    return max(group["bounding"][0] + group["bounding"][2] for group in inner["groups"])


def _ends(inputs: list[tuple[dict, list]], outputs: list[dict]) -> dict:
    """The sockets and widgets of the one node."""
    sockets = [
        {"name": end["name"], "type": end["type"], "link": None} | ({"widget": {"name": end["name"]}} if values else {})
        for end, values in inputs
    ]
    widgets = [end["name"] for end, values in inputs if values]
    return {
        "inputs": sockets,
        "outputs": [{"name": end["name"], "type": end["type"], "links": None} for end in outputs],
        "properties": {"proxyWidgets": [["-1", name] for name in widgets], "cnr_id": OURS, "ver": VERSION},
        "widgets_values": [value for _, values in inputs for value in values],
    }
