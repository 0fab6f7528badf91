"""SRPO_Prompts: what the model is to be trained on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..srpo_core.prompt_text import parse_prompts, read_prompts
from .folders import cache_folder
from .kinds import CATEGORY, DatasetType

NO_FILE = "none"


@dataclass(frozen=True)
class Prompts:
    """Prompts and the CONDITIONING of each, as the core's Dataset."""

    prompts: list[str]
    conditioning: Sequence[list]

    def cond(self, indices: list[int]) -> list:
        """One CONDITIONING for the batch of these prompts, which have the same shapes."""
        parts = [self.conditioning[i][0] for i in indices]
        together = {
            name: torch.cat([part[1][name] for part in parts]) if isinstance(value, torch.Tensor) else value
            for name, value in parts[0][1].items()
        }
        return [[torch.cat([part[0] for part in parts]), together]]

    def cond_shape(self, index: int) -> tuple:
        if index not in self._shapes:
            context, extra = self.conditioning[index][0]
            tensors = {name: value for name, value in extra.items() if isinstance(value, torch.Tensor)}
            self._shapes[index] = context.shape, *((name, value.shape) for name, value in tensors.items())
        return self._shapes[index]

    @cached_property
    def _shapes(self) -> dict[int, tuple]:
        """Of those asked for: each is in a file of its own."""
        return {}


def choose(text: Sequence[str], file: str, texts: Sequence[str] | None = None) -> list[str]:
    """The prompts: texts, each as it is, where they are given; else of the file, if one is chosen; else of the text.

    Raises ValueError if there are none, and for lines or a file that can't be read.
    """
    if texts is not None:
        prompts = [caption.strip() for caption in texts if caption.strip()]
        if not prompts:
            raise ValueError(f"There are no prompts: of {len(texts)} texts, none has a word.")
        return prompts
    return parse_prompts("\n".join(text)) if file == NO_FILE else read_prompts(_input_file(file))


def text_files() -> list[str]:
    folder = folder_paths.get_input_directory()
    return sorted(name for name in os.listdir(folder) if name.endswith(".txt"))


class PromptsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Prompts",
            display_name="SRPO Prompts",
            category=CATEGORY,
            description="The prompts to train on. The model makes its own pictures of them; none are needed.",
            is_input_list=True,  # for texts: the core's dataset nodes give lists
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that belong to the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a portrait of a woman in a cafe\na street in the rain",
                    tooltip="One prompt per line. Lines that begin with # are left out. {a|b} stands for both.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *text_files()],
                    default=NO_FILE,
                    tooltip="Take the prompts from a .txt file in ComfyUI's input folder instead, one per line.",
                ),
                io.String.Input(
                    "texts",
                    optional=True,
                    force_input=True,
                    tooltip="A list of captions, from the core's dataset nodes, used instead of text and file.",
                ),
            ],
            outputs=[DatasetType.Output(display_name="dataset")],
        )

    @classmethod
    def validate_inputs(cls, text=(None,), file=(NO_FILE,), texts=None):
        if texts or (text[0] is None and file[0] == NO_FILE):  # linked, so not known yet
            return True
        try:
            choose(text, file[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=(NO_FILE,), **_):
        if file[0] is None:  # linked, so not known yet
            return float("nan")  # a new one each time: the host compares what is the same object as equal
        return None if file[0] == NO_FILE else os.path.getmtime(_input_file(file[0]))

    @classmethod
    def execute(cls, clip, text, file, texts=None) -> io.NodeOutput:
        from .host.text_encoder import encode

        prompts = choose(text, file[0], texts)
        return io.NodeOutput(Prompts(prompts, encode(clip[0], prompts, cache_folder("prompts"))))


def _input_file(name: str) -> Path:
    """A file directly in the input folder; raises ValueError for anything else."""
    if name not in text_files():
        raise ValueError(f'There is no file "{name}" in the input folder {folder_paths.get_input_directory()}.')
    return Path(folder_paths.get_input_directory()) / name
