"""The inputs of SRPO Trainer that say what is trained and where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy_api.latest import io

from .host.adapters.settings import FULL, NO_LORA, AdapterSettings
from .host.adapters.targets import TARGETS

DEFAULT = AdapterSettings()
NEW = "new, or as it is"
FROM_RUN = "another run"
FROM_LORA = "a LoRA file"
NO_FILES = "(none is here)"
RANK = {  # what each kind calls its size, and what that says
    "LoRA": ("rank", "The size of the adapter; 16 suits SRPO."),
    "LoKr": ("factor", "How finely layers are divided: the largest factor of their sides that is taken."),
    "LoHa": ("rank", "The size of the adapter; its file has twice as many numbers as a LoRA of this rank."),
    "OFT": ("block_size", "The size of the blocks that are rotated."),
}
ALPHA = {
    "OFT": "The limit of the rotation.",
    "LoRA": "The strength of the adapter, divided by the rank. The same number as the rank means 1.",
}


def adapter_input() -> io.DynamicCombo.Input:
    ranked = [io.DynamicCombo.Option(kind, ranked_inputs(kind)) for kind in RANK]
    return io.DynamicCombo.Input(
        "adapter",
        options=[*ranked, io.DynamicCombo.Option(FULL, [target_input()])],
        tooltip="What is trained. LoRA fits most; full trains the whole layers.",
    )


def ranked_inputs(kind: str) -> list[io.Input]:
    """The numbers of an adapter that has a size."""
    name, tooltip = RANK[kind]
    return [
        io.Int.Input(name, default=DEFAULT.rank, min=1, max=1024, tooltip=tooltip),
        io.Float.Input(
            "alpha", default=DEFAULT.alpha, min=0.01, max=1024.0, step=0.01, tooltip=ALPHA.get(kind, ALPHA["LoRA"])
        ),
        target_input(),
        io.Int.Input(
            "seed",
            default=DEFAULT.seed,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            tooltip="The seed of the adapter's random start.",
            advanced=True,
        ),
    ]


def target_input() -> io.Combo.Input:
    return io.Combo.Input(
        "target", options=list(TARGETS), default=DEFAULT.target, tooltip="Which layers of the model are trained."
    )


def start_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "start",
        options=[
            io.DynamicCombo.Option(NEW, []),
            io.DynamicCombo.Option(
                FROM_RUN,
                [
                    io.String.Input(
                        "start_from",
                        default="",
                        tooltip='Another run to begin at, as in "toy", or one of its snapshots, "toy@30".',
                    )
                ],
            ),
            io.DynamicCombo.Option(
                FROM_LORA,
                [
                    io.Combo.Input(
                        "start_lora",
                        options=folder_paths.get_filename_list("loras") or [NO_FILES],
                        tooltip="A LoRA file to begin at, of this model and of trained layers alone.",
                    )
                ],
            ),
        ],
        tooltip="Where a new run begins. One that has begun goes on where it is.",
    )


def adapter_settings(adapter: Mapping[str, Any], start: Mapping[str, Any], precision: str) -> AdapterSettings:
    """adapter, start: the values of `adapter_input` and `start_input`. Raises ValueError for a LoRA where none is."""
    if start.get("start_lora") == NO_FILES:
        raise ValueError(
            f'There is no LoRA file to start from: put one into models/loras and press R, or set start to "{NEW}".'
        )
    kind = adapter["adapter"]
    name, _ = RANK.get(kind, ("rank", ""))
    return AdapterSettings(
        kind=kind,
        rank=adapter.get(name, DEFAULT.rank),
        alpha=adapter.get("alpha", DEFAULT.alpha),
        seed=adapter.get("seed", DEFAULT.seed),
        target=adapter["target"],
        start_lora=start.get("start_lora", NO_LORA),
        precision=precision,
    )
