"""What a run's LoRA or model files say of themselves, by the names of ModelSpec where it has some.

https://github.com/Stability-AI/ModelSpec
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..srpo_core.algorithm.terms import Term
from ..srpo_core.rewards import name_of
from ..srpo_core.run.run import Run

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .host.adapters.settings import AdapterSettings

FLUX_DEV = {"hidden_size": 3072, "depth": 19, "depth_single_blocks": 38, "guidance_embed": True}


def metadata_of(run: Run, base: ModelPatcher, adapter: AdapterSettings, taught: list[dict[str, Any]]) -> dict[str, str]:
    """The header of a file of what this run has learned: texts by name, those of several values as JSON.

    base: the MODEL that it trains. taught: what it was trained by, see `taught_by`.
    """
    architecture = architecture_of(base)
    described = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture if adapter.whole_layers else f"{architecture}/{adapter.kind.lower()}",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": f"{run.name}, update {run.updates}",
        "modelspec.description": describe(taught),
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    settings = {"adapter": asdict(adapter), "settings": asdict(run.settings), "rewards": taught}
    ours = {"run": run.name, "updates": str(run.updates), "base": base_of(base), "data": run.data}
    ours |= {name: json.dumps(value) for name, value in settings.items()}
    return described | {f"srpo.{name}": value for name, value in ours.items()}


def describe(taught: list[dict[str, Any]]) -> str:
    """What the rewards asked for, for people."""
    wanted = [f"{entry['reward']}{_words(entry['objective'])}" for entry in taught if entry["weight"]]
    return f"Trained with SRPO by {' and '.join(wanted)}." if wanted else "Trained with SRPO."


def _words(objective: dict[str, Any] | str) -> str:
    if not isinstance(objective, dict) or not {"positive", "negative"} <= objective.keys():
        return ""
    towards, away = (", ".join(objective[side]) for side in ("positive", "negative"))
    return f", towards {towards}, away from {away}"


def taught_by(terms: Iterable[Term]) -> list[dict[str, Any]]:
    """The rewards with their names, weights and objectives, as values that JSON knows."""
    return [
        {
            "reward": str(name_of(term.reward)),
            "name": term.name,
            "weight": term.weight,
            "objective": asdict(term.objective) if is_dataclass(term.objective) else type(term.objective).__name__,
        }
        for term in terms
    ]


def architecture_of(base: ModelPatcher) -> str:
    """ModelSpec's name of FLUX.1-dev, for all models of its sizes; else the host's name of the kind of model."""
    config = getattr(getattr(base.model, "model_config", None), "unet_config", {})
    if FLUX_DEV.items() <= config.items():
        return "flux-1-dev"
    return type(base.model).__name__.lower()


def base_of(base: ModelPatcher) -> str:
    """The name of the file that the host loaded the model from, where it knows that, and the kind of model."""
    kind = type(base.model).__name__
    _, arguments, *_ = getattr(base, "cached_patcher_init", None) or (None, ())
    file = arguments[0] if arguments else None
    return f"{Path(file).name} ({kind})" if isinstance(file, str) else kind
