"""Image and text towers of the sizes that a file's shapes tell: what those of all libraries share."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from .weights import Weights

HEAD_WIDTH = {1152: 72, 1280: 80, 1408: 88, 1536: 96, 1664: 104}  # of an image tower, by its width; else 64
PART = re.compile(r"-\d+-of-\d+\.")  # in the names of files that hold a part of a model
BUFFERS = ("position_ids", "attn_mask", "norm.bias", "inv_freq")  # some files hold these; they are no weights
SIZES = {(27, 14): 384}  # pixels, by patches along a side and pixels of a patch, where one is not their product
MOST_LAYERS = 200  # the largest known have 48
MOST_PIXELS = 2048  # along a side; the largest known have 512
MOST_PATCHES = 128  # along a side; the largest known have 37
MOST_TOKENS = 4096  # of a text; the longest known have 248


@dataclass(frozen=True)
class Tower:
    """A tower that is not in memory yet.

    build: makes the module, on the meta device. wrap: gives it the call that rewards use. part: what the names of
    its tensors in the file start with, beyond which it must have none there. name: from the module's names to those.
    """

    weights: Weights
    build: Callable[[], nn.Module]
    part: str
    name: Callable[[str], str]
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module

    def check(self) -> nn.Module:
        """The module without its weights. Raises ValueError when the file does not hold just what it needs."""
        file = self.weights.path.name
        shapes = self.weights.shapes
        module = self._build()
        needed = {self.name(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if missing := [name for name in needed if name not in shapes]:
            raise ValueError(not_whole(self.weights, missing))
        for name, shape in needed.items():
            if shapes[name] != shape:
                raise ValueError(f"{file} is not of a known model: {name} is {shapes[name]}, where {shape} would fit.")
        self.weights.check(needed)
        parts = [name for name in shapes if name.startswith(self.part) and not name.endswith(BUFFERS)]
        if more := [name for name in parts if name not in needed]:
            raise ValueError(f"{file} is of another model than those known here, with {listed(more)} more.")
        return module

    def _build(self) -> nn.Module:
        try:
            with torch.device("meta"):
                return self.build()
        except (RuntimeError, TypeError, ArithmeticError, AssertionError) as error:  # each library has its own
            raise ValueError(
                f"{self.weights.path.name} is not of a known model: its tensors have sizes of which none can be made "
                f"({error})."
            ) from error

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The frozen module with its weights, which are read now. Raises ValueError as check and Weights.read do."""
        module = self.check()
        read = self.weights.read([self.name(name) for name in module.state_dict()], dtype)
        module.load_state_dict({name: read[self.name(name)] for name in module.state_dict()}, assign=True)
        rebuild_buffers(module)
        return self.wrap(module).eval().requires_grad_(False)


def not_whole(weights: Weights, missing: list[str]) -> str:
    """The sentence for tensors that a model has and its file lacks: no download is at fault, those are found before."""
    part = " This is one part of several: join them into one file." if PART.search(weights.path.name) else ""
    return (
        f"{weights.path.name} is not whole: {listed(missing)} missing{weights.where}.{part} Use a file of the whole "
        "model."
    )


def listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} others are" if len(names) > 3 else f"{shown} {'are' if names[1:] else 'is'}"


def rebuild_buffers(module: nn.Module):
    """Fill what the libraries compute and no file holds; the meta device left it empty."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                setattr(part, name, torch.arange(buffer.shape[-1]).expand(1, -1))
            elif buffer.is_meta and name == "attn_mask":
                setattr(part, name, cast(Any, part).build_causal_mask())


def prefixed(prefix: str) -> Callable[[str], str]:
    """Names as in a whole model; a tower alone leaves the prefix out of them in some versions of transformers."""
    return lambda name: name if name.startswith(prefix) else prefix + name


def heads(width: int, head_width: int = 64) -> int:
    """Small models, of a width that heads do not divide, have one."""
    return width // head_width if width % head_width == 0 else 1


def image_heads(width: int) -> int:
    return heads(width, HEAD_WIDTH.get(width, 64))


def layers(weights: Weights, prefix: str) -> int:
    """How many numbers there are after this prefix. Raises ValueError for more than any model has."""
    count = len({name[len(prefix) :].split(".")[0] for name in weights.stored if name.startswith(prefix)})
    if count > MOST_LAYERS:
        raise ValueError(f"{weights.path.name} is not of a known model: it has {count} layers under {prefix}.")
    return count


def shape(weights: Weights, name: str, dimensions: int) -> tuple[int, ...]:
    """Raises ValueError when it is missing, or has not so many dimensions, or is empty."""
    if name not in weights.stored:
        raise ValueError(not_whole(weights, [name]))
    found = weights.stored[name].shape
    if len(found) != dimensions or 0 in found:
        raise ValueError(
            f"{weights.path.name} is not of a known model: {name} is {found}, and {dimensions} sizes, none of them 0, "
            "would fit."
        )
    return found


def text_sizes(weights: Weights, tokens: str, positions: str) -> tuple[int, int]:
    """How many tokens there are, and how many of them a text may have, from the embeddings of these names."""
    context = shape(weights, positions, 2)[0]
    if not 2 <= context <= MOST_TOKENS:
        raise ValueError(f"{weights.path.name} is not of a known model: it reads texts of {context} tokens.")
    return shape(weights, tokens, 2)[0], context


def image_size(weights: Weights, positions: int, patch: int) -> int:
    """Side of the input in pixels, from the number of patches and the side of one."""
    side = math.isqrt(max(positions, 0))
    if side * side != positions or not side:
        raise ValueError(
            f"{weights.path.name} is made for {positions} patches, which form no square. Use one for square ones."
        )
    if side > MOST_PATCHES or side * patch > MOST_PIXELS:
        raise ValueError(f"{weights.path.name} is not of a known model: it sees pictures {side * patch} pixels wide.")
    return SIZES.get((side, patch), side * patch)
