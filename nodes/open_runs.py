"""The runs that are open in this ComfyUI, by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_execution.utils import get_executing_context

from ..srpo_core.language import say
from .folders import check_run_name
from .host.progress import show_text
from .open_run import OpenRun, OpenRunSettings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)


def _check_carries_none(model: ModelPatcher):
    """Two runs on one MODEL would each train on top of what the other is doing at that moment."""
    from .host.adapters.readable import adapter_of

    if adapter_of(model) is None:
        return
    other = run_of(model)
    whose = f'the run "{other.name}"' if other else "another run"
    raise ValueError(
        f"The model that comes in carries the adapter of {whose} already: connect the model from before that SRPO "
        "Trainer. To train on top of what it has learned, load its LoRA from output/loras/srpo with a LoRA loader "
        "before this node; to begin a new run where it is, choose another run as start."
    )


@dataclass
class _Entry:
    opened: OpenRun
    prompt: str  # which queued prompt, and which node of it, has the run
    node: str


_open: dict[str, _Entry] = {}


def open_run(name: str, base: ModelPatcher, settings: OpenRunSettings) -> OpenRun:
    """The run of this name: as it is open already, else from its folder, else new; then it begins at `start_from`.

    Runs that only earlier prompts used are saved and closed: each holds memory. One that can't be saved stays open,
    and its node says so.
    Raises ValueError for a name that is taken in this prompt, by another node or with other settings, or by another
    ComfyUI, and for a MODEL that carries a run's adapter already.
    """
    from .host.fitting import check_model

    check_run_name(name)
    check_model(base)
    _check_carries_none(base)
    context = get_executing_context()
    held = _open.get(name)
    if held and held.prompt == context.prompt_id and held.node != context.node_id:
        raise ValueError(
            f'Two SRPO Trainers of this workflow train the run "{name}" at once: give one of them another run name.'
        )
    for other in [n for n, o in _open.items() if n != name and o.prompt != context.prompt_id]:
        _close_other(other, context.node_id)
    if held and not (held.opened.usable() and held.opened.made_with(base, settings)):
        if held.prompt == context.prompt_id:  # then what it was opened for is still to come
            raise ValueError(
                f'SRPO Trainer gets a list, and opens the run "{name}" again with other settings: give each entry a '
                "run name of its own."
            )
        close_run(name)
    if name in _open:
        opened = _open[name].opened
        opened.take(base)
    else:
        opened = OpenRun(name, base, settings, _save_if_open)
    _open[name] = _Entry(opened, context.prompt_id, context.node_id)
    return opened


def _save_if_open(name: str):
    """Save the run of this name, if it is open and whole, so that another can begin where it is."""
    if name in _open and _open[name].opened.usable():
        _open[name].opened.run.save()


def _close_other(name: str, node: str):
    """Close the run of this name; where it can't be saved it stays open, and no other run need wait for it."""
    try:
        close_run(name)
    except RuntimeError as error:
        text = say('The run "{name}" could not be closed and stays open: {error}', name=name, error=error)
        log.warning("%s", text)
        show_text(text, node)


def run_of(model: ModelPatcher) -> OpenRun | None:
    """The open run whose adapter this MODEL carries."""
    from .host.adapters.readable import adapter_of

    adapter = adapter_of(model)
    return next((held.opened for held in _open.values() if held.opened.adapter is adapter), None)


def open_names() -> list[str]:
    """The names of the runs that are open."""
    return list(_open)


def close_run(name: str):
    _open[name].opened.close()
    del _open[name]  # one that could not be saved stays open


def state_of(name: str) -> tuple[str, int] | float:
    """Another value for each opening and each update of the run of this name.

    Where the run can't go on from memory it is never the same: what the host's cache kept of it is closed or lost.
    """
    held = _open.get(name)
    if held is None or not held.opened.usable():
        return float("nan")  # a new one each time: the host compares what is the same object as equal
    return held.opened.opening, held.opened.run.updates
