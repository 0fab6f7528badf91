"""What a run will need of a device's memory, and what to change where that is too much."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..language import called, names, say

GB = 1e9
STAGES = names("rollout", "branch", "decode") + names("optimizer", "reward")
BY_HAND = "by hand"  # a run uses memory as is set
AUTO = "auto"  # as is fastest in what is free
CARDS = {  # as is fastest on a card of this size
    "8 GB": 8 * GB,
    "12 GB": 12 * GB,
    "16 GB": 16 * GB,
    "24 GB": 24 * GB,
    "48 GB+": math.inf,
}


class LiveBytes(TorchDispatchMode):
    """Counts, while it is open, the bytes of what operations make on a kind of device ("cpu", "cuda").

    held: bytes that are alive now; peak: the most there were so far. What an operation takes for itself while it runs
    is not seen.
    """

    def __init__(self, device_type: str = "cpu"):
        super().__init__()
        self.device_type = device_type
        self.held = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in self._storages((args, kwargs))}  # views and what is written in place
        for storage in self._storages(result):
            if storage._cdata not in given:
                self._add(storage)
        return result

    def _storages(self, tree: Any) -> Iterator[torch.UntypedStorage]:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                yield leaf.untyped_storage()

    def _add(self, storage: torch.UntypedStorage):
        size = storage.nbytes()
        place = storage._cdata
        if place not in self.known:
            self.known.add(place)
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._forget, place, size).atexit = False

    def _forget(self, place: int, size: int):
        self.known.discard(place)
        self.held -= size


@dataclass(frozen=True)
class StageBytes:
    """Bytes that one stage needs.

    weights: those of its model as they are stored, which the host may leave in RAM in part. working: all else that is
    on the device meanwhile.
    """

    weights: int
    working: int

    @property
    def peak(self) -> int:
        return self.weights + self.working


class BlockBytes(NamedTuple):
    """Bytes of one block of a model.

    saved: what stays from its forward to its backward. transient: what it takes on top of that while it runs.
    """

    saved: int
    transient: int


def over_blocks(before: int, blocks: Iterable[BlockBytes]) -> tuple[int, int]:
    """The peak of a forward and backward through blocks, and what is held between the two; `before` is there anyway."""
    held = before
    peak = before
    for block in blocks:
        held += block.saved
        peak = max(peak, held + block.transient)
    return peak, held


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """How a run uses memory.

    at_once: pictures in one trained forward; kept_blocks: blocks whose activations stay for the backward; offload: the
    inputs of the others wait for it in RAM; sampled_at_once: pictures that are rolled out together.
    """

    at_once: int = 1
    kept_blocks: int = 0
    offload: bool = False
    sampled_at_once: int = 1


def fastest(
    needs_with: Callable[[MemoryUse], Mapping[str, StageBytes]], *, at_once: int, batch: int, blocks: int, budget: float
) -> MemoryUse:
    """How to use `budget` bytes: with weights and all on the device, at most `at_once`, halved until it fits, and then
    as many of the `blocks` kept as fit too.

    at_once: 0 is as many of a batch as fit with all blocks kept, which saves more than sharing a forward does.
    Where the weights don't fit beside one picture, the least that leaves room for them: the host streams the rest.
    """

    def peak(use: MemoryUse) -> int:
        return max(need.peak for need in needs_with(use).values())

    if not at_once:
        if peak(MemoryUse(kept_blocks=blocks)) <= budget:
            all_kept = (MemoryUse(at_once=count, kept_blocks=blocks) for count in halves(batch))
            return next((use for use in all_kept if peak(use) <= budget), MemoryUse(kept_blocks=blocks))
        at_once = 1
    uses = [MemoryUse(at_once=at_once >> halvings) for halvings in range(at_once.bit_length())]
    use = next((use for use in uses if peak(use) <= budget), None)
    if use is None:
        return MemoryUse(offload=True)
    least = peak(use)
    most = peak(replace(use, kept_blocks=blocks))
    kept_blocks = blocks if most <= budget else int(blocks * (budget - least) / (most - least))
    while kept_blocks and peak(replace(use, kept_blocks=kept_blocks)) > budget:  # blocks differ
        kept_blocks = kept_blocks * 3 // 4
    return replace(use, kept_blocks=kept_blocks)


def sampled_together(rollout: StageBytes, resting: int, *, at_once: int, batch: int, budget: float) -> int:
    """How many of a batch to roll out together: all, or half of them, and so on; no fewer than `at_once`.

    Together they fill a GPU better, and weights that don't fit there are fetched once for all. Those have the room
    first where they fit, and otherwise half of it.
    rollout: the bytes for `at_once` pictures; resting: those of them that are there for any number.
    """
    each = (rollout.working - resting) / at_once
    room = budget - resting - (rollout.weights if rollout.peak <= budget else budget / 2)
    return max(at_once, next((count for count in halves(batch) if count * each <= room), 1))


def halves(batch: int) -> Iterator[int]:
    """All of a batch, half of it, and so on, to 2 or 1."""
    return (math.ceil(batch / 2**halvings) for halvings in range(batch.bit_length()))


def advice(
    needs: Mapping[str, StageBytes], free: int, remedies: Iterable[tuple[str, Mapping[str, StageBytes]]] = ()
) -> str:
    """Whether a run with these needs by stage fits into `free` bytes, in a sentence; empty if it does.

    remedies: what else could be set and what is needed with it and all before it, in the order to try them in.
    """
    stage, missing = most_missing(needs, free)
    if missing <= 0:
        return slow(needs, free)
    text = say(
        "This can't fit: the stage {stage} needs {missing:.1f} GB more than the {free:.1f} GB there are.",
        stage=called(stage, STAGES),
        missing=missing / GB,
        free=free / GB,
    )
    useful: list[str] = []
    for setting, with_it in remedies:
        _, then = most_missing(with_it, free)
        if then < missing:
            useful.append(setting)
        missing = min(missing, then)
        if missing <= 0:
            return f"{text} {say('It would with {settings}.', settings=say(' and ').join(useful))}"
    if useful:
        useless = say("No setting here is enough: not even {settings}.", settings=say(" and ").join(useful))
    else:
        useless = say("No setting here is enough.")
    return f"{text} {useless}"


def most_missing(needs: Mapping[str, StageBytes], free: int) -> tuple[str, int]:
    """The stage that is furthest from fitting, its weights in RAM, and by how many bytes; not above 0 if it fits."""
    stage = max(needs, key=lambda name: needs[name].working)
    return stage, needs[stage].working - free


def slow(needs: Mapping[str, StageBytes], free: int) -> str:
    stage = max(needs, key=lambda name: needs[name].peak)
    rest = needs[stage].peak - free
    if rest <= 0:
        return ""
    return say(
        "{rest:.1f} GB of the {weights:.1f} GB of weights of the stage {stage} don't fit beside the rest into the "
        "{free:.1f} GB there are: ComfyUI keeps them in RAM, which is slower. Of a smaller base (fp8, GGUF) more would "
        "fit.",
        rest=rest / GB,
        weights=needs[stage].weights / GB,
        stage=called(stage, STAGES),
        free=free / GB,
    )
