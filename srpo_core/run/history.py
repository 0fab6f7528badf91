"""A run's metrics, one JSON object for each update: for people, and never needed to go on."""

import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path

from ..checks import is_number
from ..files import parse_json

log = logging.getLogger(__name__)

RECENT = 8  # updates, whose mean words-gap is a snapshot's merit
MOST_READ = 2**28  # bytes: a thousand times what a long run writes

History = list[dict[str, float]]


def history_text(history: History) -> str:
    """JSON knows no NaN, which a skipped update may have: null stands for it."""
    lines = [{k: v if math.isfinite(v) else None for k, v in metrics.items()} for metrics in history]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read_history(file: Path, updates: int) -> History:
    """The metrics of updates 1 to `updates`; later lines are of updates that were not saved.

    Lines that are missing or can't be read are left out, and the log says so; the file is then kept beside, as the
    next save writes it anew.
    """
    lines, why = _lines(file)
    read = [_metrics(line) for line in lines]
    history = [metrics for metrics in read if metrics and metrics["update"] <= updates]
    numbers = [metrics["update"] for metrics in history]
    if None in read:
        why = "some lines are not of an update"
    if numbers != sorted(set(numbers)):
        history = []
        why = "its updates are out of order"
    if len(history) < updates:
        missing = updates - len(history)
        log.warning("%s lacks %d of %d updates: curves and limits go without them.", file, missing, updates)
    if why and os.path.lexists(file):
        _put_aside(file, why)
    return history


def recent_words_gap(history: History, update: int) -> float:
    """The mean words-gap of the RECENT updates up to this one; -inf where none was finite."""
    recent = [metrics.get("words_gap", math.nan) for metrics in history if 0 <= update - metrics["update"] < RECENT]
    finite = [gap for gap in recent if math.isfinite(gap)]
    return sum(finite) / len(finite) if finite else -math.inf


def _lines(file: Path) -> tuple[list[str], str]:
    try:
        if not file.is_file():
            return [], "it is no file"
        if file.stat().st_size > MOST_READ:
            return [], "it is too large"
        return file.read_text(errors="replace").splitlines(), ""
    except OSError as error:
        return [], str(error)


def _metrics(line: str) -> dict[str, float] | None:
    """One line; None where it is not that of an update."""
    try:
        read = parse_json(line)
    except ValueError:
        return None
    if not isinstance(read, dict) or type(read.get("update")) is not int or "loss" not in read or read["update"] < 1:
        return None
    if not all(value is None or is_number(value) and abs(value) < 1e300 for value in read.values()):
        return None
    return {name: math.nan if value is None else value for name, value in read.items()}


def _put_aside(file: Path, why: str):
    beside = file.with_name(f"{file.name}.damaged")
    with suppress(OSError):  # it is only for people
        os.replace(file, beside)
        log.warning("%s can't be read whole (%s) and is kept as %s.", file, why, beside.name)
