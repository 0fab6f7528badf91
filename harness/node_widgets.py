"""What the widgets of a node are set to, and how high it must be for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workflow import AFTER_GENERATE, DYNAMIC, option_inputs, widgets

SOCKET = 20  # pixels of height, as measured in both renderers
ROW = 24  # of a widget on the classic canvas, which shows all
WIDGET = 28  # of one with Nodes 2.0, which hides the advanced ones
EDGES = 14
BADGE = 24  # beneath them, with Nodes 2.0
ADVANCED = 32  # its button that shows the rest
TEXT = 70  # of a text of several lines, at least


@dataclass
class Value:
    """Of a widget. kind: its type. parts: the value, and what the front end keeps behind it."""

    kind: str
    parts: list
    is_text: bool  # of several lines
    is_advanced: bool


def values_of(given: Mapping[str, Any], schema: dict, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """The value of each widget by its name. given: what is set, by the same; all else is the schema's default."""
    for name, (kind, options) in widgets(schema):
        value = given.get(prefix + name)
        value = options.get("default") if value is None or isinstance(value, tuple) else value
        if value is None and kind == "COMBO":
            value = next(iter(options.get("options") or _listed(schema, name)), "")
        if value is None and kind == DYNAMIC:
            value = options["options"][0]["key"]
        value = "" if value is None else value
        follows = [given.get("after_generate", AFTER_GENERATE[0])] if options.get("control_after_generate") else []
        is_text, is_advanced = (bool(options.get(name)) for name in ("multiline", "advanced"))
        yield prefix + name, Value(kind, [value, *follows], is_text, is_advanced)
        if kind == DYNAMIC:
            yield from values_of(given, option_inputs(options, value), f"{prefix}{name}.")


def _listed(schema: dict, name: str) -> list:
    """The options of a combo of the older form, whose type is the list of them."""
    return next(part[name][0] for part in schema.values() if name in part)


def least_heights(slots: int, values: list[Value], schema: dict) -> tuple[int, int]:
    """What a node needs on the classic canvas, and with Nodes 2.0. slots: how many are in its longer row of sockets."""
    texts = TEXT * sum(each.is_text for each in values)
    lines = [each for each in values if not each.is_text]
    shown = [each for each in lines if not each.is_advanced]
    above = EDGES + SOCKET * slots + texts
    has_badge = schema["name"].startswith("SRPO_") or schema.get("experimental")
    foot = BADGE * bool(has_badge) + ADVANCED * (len(shown) < len(lines))
    return above + ROW * sum(len(each.parts) for each in lines), above + WIDGET * len(shown) + foot
