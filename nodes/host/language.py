"""The language in which nodes say things: that of the front end, where there is a translation, else English."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from server import PromptServer

LOCALES = Path(__file__).parents[2] / "locales"
TRANSLATED = ("zh",)  # also what Chinese of other places gets
FILE = "summaries.json"  # the host serves other names only

_accepted: dict[str | None, str] = {}  # Accept-Language by client


def translations() -> Mapping[str, str]:
    """For each English template that of the front end's language, as it is now; none where that is not translated."""
    language = language_of_front_end().partition("-")[0].lower()
    return _read(LOCALES / language / FILE) if language in TRANSLATED else {}


def language_of_front_end() -> str:
    """As "zh" or "zh-TW": what is chosen in its settings, else what the browser that queued the prompt asks for first.

    Empty where that is not known, and with --multi-user, where each user has settings of their own.
    """
    if args.multi_user:
        return ""
    file = Path(folder_paths.get_user_directory(), "default", "comfy.settings.json")
    try:
        chosen = _chosen_in(file, file.stat().st_mtime_ns)
    except OSError:
        chosen = ""
    return chosen or _language_of_browser()


@lru_cache(maxsize=1)
def _chosen_in(file: Path, changed: int) -> str:
    """The language in a file of settings, which changed at this time; empty where none is chosen, or it can't be read.

    Raises OSError.
    """
    chosen = _read_object(file).get("Comfy.Locale")
    return chosen if isinstance(chosen, str) else ""


def _language_of_browser() -> str:
    """What it asks for first, which the front end takes until one is chosen; also once the browser is closed."""
    client = None
    with suppress(AttributeError, KeyError):  # of another ComfyUI, or a browser that has gone
        client = PromptServer.instance.client_id
        request = PromptServer.instance.sockets[client]._req  # there is no other way to what a socket began with
        _accepted[client] = request.headers.get("Accept-Language", "")
    return _accepted.get(client, "").partition(",")[0].partition(";")[0].strip()


@lru_cache
def _read(file: Path) -> dict[str, str]:
    try:
        return _read_object(file)
    except OSError:
        return {}


def _read_object(file: Path) -> dict:
    """The JSON object in a file, or an empty one where it is something else. Raises OSError."""
    try:
        content = json.loads(file.read_text("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
