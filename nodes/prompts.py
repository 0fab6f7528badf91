"""SRPO_Prompts: what the model is to be trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import folder_paths
import torch
from comfy_api.latest import io

from ..srpo_core.checks import shown
from ..srpo_core.data.photo_files import captions_among
from ..srpo_core.data.prompt_text import check_beginning, check_prompts, parse_prompts, read_prompts
from ..srpo_core.data.wildcards import check_prompt
from ..srpo_core.language import say, say_many
from .checked import answer_of, host_checked
from .folders import cache_folder
from .host.progress import show_text
from .outputs import summary_output
from .sockets import CATEGORY, DatasetType

if TYPE_CHECKING:
    from comfy.sd import CLIP

NO_FILE = "none"
EXAMPLES = """\
a portrait of a woman in a cafe by the window
a street in the rain at night, people with umbrellas
two friends on a park bench in autumn
a market stall with fruit, a seller weighing apples
a black cat on a windowsill, curtains
a mountain hut in fog, a footpath
a chef plating a dish in a small restaurant
a glass of water on a wooden table, hard light"""
CHECKED = 200_000  # characters that are looked at before a workflow is queued, while the server waits; the rest follows


class EncodedPrompts(Protocol):
    """The CONDITIONING of each prompt, which is encoded when it is first asked for."""

    def prepare(self, indices: list[int]):
        """Encode those that are not yet, all at once."""

    def __getitem__(self, index: int) -> list: ...


@dataclass(frozen=True)
class Prompts:
    """Prompts and the CONDITIONING of each, as the core's Dataset."""

    prompts: list[str]
    conditioning: EncodedPrompts

    def content(self) -> list[str]:
        return self.prompts

    def prepare(self, indices: list[int]):
        """Encode those that are not yet, all at once."""
        self.conditioning.prepare(indices)

    def cond(self, indices: list[int]) -> list:
        """One CONDITIONING for the batch of these prompts, which have the same shapes."""
        self.prepare(indices)
        parts = [self.conditioning[i][0] for i in indices]
        together = {name: joined([part[1][name] for part in parts]) for name in parts[0][1]}
        return [[torch.cat([part[0] for part in parts]), together]]

    def cond_shape(self, index: int) -> tuple:
        if index not in self._shapes:
            context, extra = self.conditioning[index][0]
            shapes = ((name, shape_of(value)) for name, value in extra.items())
            self._shapes[index] = context.shape, *(each for each in shapes if each[1])
        return self._shapes[index]

    @cached_property
    def _shapes(self) -> dict[int, tuple]:
        """The shapes of those asked for: each is in a file of its own."""
        return {}


def shape_of(value: Any) -> tuple:
    """That of a tensor, or those of a list of tensors; empty for anything else."""
    if isinstance(value, list):
        return tuple(shape_of(item) for item in value)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def joined(values: list) -> Any:
    """What conditionings of one shape have under one name, as a batch has it: what is no tensor is as the first's."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list) and all(isinstance(value, torch.Tensor) for value in first):
        return [torch.cat(several) for several in zip(*values, strict=True)]
    return first


def choose(text: Sequence[str], file: str, texts: Sequence[str] | None = None) -> list[str]:
    """The prompts: texts, each as it is, where they are given; else of the file, if one is chosen; else of the text.

    Raises ValueError if there are none, and for lines, texts or a file that can't be read.
    """
    for name, values in (("text", text), ("file", [file]), ("texts", texts or ())):
        if wrong := [value for value in values if not isinstance(value, str)]:  # links bring anything
            raise ValueError(f"{name} is {shown(wrong[0])}: give a text.")
    if texts is not None:
        return as_they_are(texts)
    return parse_prompts("\n".join(text)) if file == NO_FILE else read_prompts(_input_file(file))


def as_they_are(texts: Sequence[str]) -> list[str]:
    prompts = [caption.strip() for caption in texts if caption.strip()]
    if not prompts:
        raise ValueError(f"There are no prompts: of {len(texts)} texts, none has a word.")
    for number, prompt in enumerate(prompts, 1):
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"Text {number} of {len(texts)}: {error}") from None
    return prompts


def check(text: Sequence[str], file: str):
    """Raises ValueError as `choose` does, for what is wrong at the beginning; it takes no longer for more text."""
    if file != NO_FILE:
        check_beginning(_input_file(file), CHECKED)
        return
    joined = "\n".join(text)
    whole = len(joined) <= CHECKED
    check_prompts(joined if whole else joined[:CHECKED].rpartition("\n")[0] or joined[:CHECKED], whole=whole)


def prompts_summary(prompts: Sequence[str]) -> str:
    """What the node says of its prompts."""
    text = say_many(len(prompts), "{count} prompt.", "{count:,} prompts.")
    bracketed = [prompt for prompt in prompts if "[" in prompt and "]" in prompt]
    if not bracketed:
        return text
    about = say(
        '{count:,} with [ ], which are read as they are written and weigh nothing: "{first}"',
        count=len(bracketed),
        first=bracketed[0][:60],
    )
    return f"{text} {about}"


def text_files() -> list[str]:
    """Files of text in the input folder, and in folders inside it, by their paths with forward slashes.

    Hidden ones, links out of the folder and, in folders inside it, captions beside pictures are left out.
    """
    root = Path(folder_paths.get_input_directory())
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(place, name) for name in names if not name.startswith(".")]
        captions = captions_among(files) if Path(place) != root else set()
        texts = [file for file in files if file.suffix.lower() == ".txt" and file not in captions]
        found += filter(_is_inside, texts)
    return sorted(file.relative_to(root).as_posix() for file in found)


def _is_inside(file: Path) -> bool:
    """Whether it is a file, and in the input folder: no link out of it."""
    return file.is_file() and folder_paths.is_within_directory(folder_paths.get_input_directory(), str(file))


class PromptsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Prompts",
            display_name="SRPO Prompts",
            category=CATEGORY,
            description="The prompts to train on. The model makes its own pictures of them; none are needed.",
            search_aliases=["prompt list", "captions", "wildcards", "training prompts", "srpo"],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,  # for texts: the core's dataset nodes give lists
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that belong to the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=EXAMPLES,
                    placeholder="Prompts to train on, one per line",
                    tooltip="The prompts, one per line; the more and the more different, the better. Lines that begin "
                    "with # or // are left out. {a|b} stands for both.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *text_files()],
                    default=NO_FILE,
                    tooltip="A .txt file in ComfyUI's input folder, one prompt per line, that is read instead of the "
                    "text.",
                ),
                io.String.Input(
                    "texts",
                    optional=True,
                    force_input=True,
                    tooltip="A list of captions, from the core's dataset nodes, used instead of text and file.",
                ),
            ],
            outputs=[
                DatasetType.Output(display_name="dataset", tooltip="The prompts, for SRPO Train."),
                summary_output(),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, text: Sequence[str | None] = (None,), file: Sequence[str] = (NO_FILE,), texts: list | None = None
    ) -> bool | str:
        if texts or file[0] is None or (text[0] is None and file[0] == NO_FILE):  # linked, so not known yet
            return True
        return answer_of(check, text, file[0])

    @classmethod
    def fingerprint_inputs(cls, file: Sequence[str | None] = (NO_FILE,), **_: Any) -> float | None:
        if file[0] is None:  # linked, so not known yet
            return float("nan")  # a new one each time: the host compares what is the same object as equal
        return None if file[0] == NO_FILE else os.path.getmtime(_input_file(file[0]))

    @classmethod
    @host_checked
    def execute(
        cls, clip: list[CLIP], text: list[str], file: list[str], texts: list[str] | None = None
    ) -> io.NodeOutput:
        from .host.text_encoder import Encoded

        prompts = choose(text, file[0], texts)
        dataset = Prompts(prompts, Encoded(clip[0], prompts, cache_folder("prompts")))
        summary = prompts_summary(prompts)
        if cls.hidden:  # none where it is called outside of a queued prompt
            show_text(summary, cls.hidden.unique_id)
        return io.NodeOutput(dataset, summary)


def _input_file(name: str) -> Path:
    """A .txt file in the input folder; raises ValueError for anything else."""
    root = folder_paths.get_input_directory()
    file = Path(root) / name
    if not name.lower().endswith(".txt"):
        raise ValueError(f'"{name}" is no .txt file: save the prompts as one, one per line, and nothing else in it.')
    if "\0" in name or not _is_inside(file):
        raise ValueError(f'There is no file "{name}" in the input folder {root}.')
    return file
