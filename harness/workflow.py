"""Workflows as people save them (UI format), and prompts as the host takes them (API format)."""

import json
from pathlib import Path

WORKFLOW_1 = Path(__file__).with_name("toy_in_one_minute.json")
NOTES = ("Note", "MarkdownNote")
MUTED = 2
BYPASSED = 4
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")


def workflow_1() -> tuple[dict, dict]:
    """The API prompt of workflow 1, and the inputs in it by node type; a test holds it and the workflow together."""
    prompt = json.loads(WORKFLOW_1.read_text("utf-8"))
    return prompt, {entry["class_type"]: entry["inputs"] for entry in prompt.values()}


def to_prompt(workflow: dict, object_info: dict):
    """The API prompt of `workflow`; `object_info` is the host's answer of that name.

    Raises ValueError for a node that the host does not have, and for widget values that are left over.
    """
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    links = {link[0]: link for link in workflow["links"]}
    return {str(id_): _entry(node, nodes, links, object_info) for id_, node in nodes.items() if _runs(node)}


def _runs(node: dict):
    return node["type"] != "Reroute" and node.get("mode", 0) not in (MUTED, BYPASSED)


def _entry(node: dict, nodes: dict, links: dict, object_info: dict):
    if node["type"] not in object_info:
        raise ValueError(f"the host has no node {node['type']!r}")
    inputs = _widget_values(node, object_info[node["type"]]["input"])
    for slot in node.get("inputs", ()):
        source = _source(slot.get("link"), nodes, links)
        if source:
            inputs[slot["name"]] = source
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title", node["type"])}}


def _source(link: int | None, nodes: dict, links: dict):
    """`[node id, slot]` that `link` comes from, seen through reroutes and bypassed nodes; None if it ends nowhere."""
    if link is None:
        return None
    _, origin, slot, _, _, kind = links[link][:6]
    node = nodes[origin]
    if _runs(node):
        return [str(origin), slot]
    passed = [i.get("link") for i in node["inputs"] if node["type"] == "Reroute" or i["type"] == kind]
    return _source(passed[0], nodes, links) if passed and node.get("mode") != MUTED else None


def _widget_values(node: dict, schema: dict):
    """Values by input name: `widgets_values` holds them in the schema's order, some with a companion behind them."""
    values = list(node.get("widgets_values", ()))
    named = {}
    _take(values, schema, named, node["type"])
    if values:
        raise ValueError(f"{node['type']} has values left over: {values}")
    return named


def _take(values: list, schema: dict, named: dict, owner: str, prefix: str = ""):
    """Move the values of a schema's widgets into `named`, behind a dynamic combo those of what it is set to."""
    for name, (kind, options) in widgets(schema):
        if not values:
            raise ValueError(f"{owner} has no value for {prefix + name!r}")
        value = named[prefix + name] = values.pop(0)
        if kind == DYNAMIC:
            _take(values, option_inputs(options, value), named, owner, prefix=f"{prefix}{name}.")
        seed = name in ("seed", "noise_seed") and kind == "INT"
        if (options.get("control_after_generate") or seed) and values and values[0] in AFTER_GENERATE:
            values.pop(0)
        if options.get("image_upload"):
            values.pop(0)


def option_inputs(options: dict, key: str) -> dict:
    """The inputs of one option of a dynamic combo, as a schema. Raises ValueError where there is no such option."""
    found = [option["inputs"] for option in options["options"] if option["key"] == key]
    if not found:
        raise ValueError(f"{key!r} is no option of {[option['key'] for option in options['options']]}")
    return found[0]


def widgets(schema: dict):
    """(name, (type, options)) of the inputs that are widgets, in order."""
    for part in ("required", "optional"):
        for name, (kind, *options) in schema.get(part, {}).items():
            options = options[0] if options else {}
            kind = "COMBO" if isinstance(kind, list) else kind
            if kind in WIDGETS and not options.get("forceInput"):
                yield name, (kind, options)
