"""SRPO_Prompts: what the model is to be trained on."""

import os
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from .kinds import CATEGORY, DatasetType

NO_FILE = "none"


@dataclass(frozen=True)
class Prompts:
    """Prompts and their CONDITIONING, as the core's Dataset."""

    prompts: list[str]
    conditioning: list[list]

    def cond(self, indices: list[int]) -> list:
        """One CONDITIONING for the batch of these prompts."""
        parts = [self.conditioning[i][0] for i in indices]
        if len({part[0].shape for part in parts}) > 1:
            raise ValueError(
                "These prompts have different token lengths, so they can't share a forward: set at_once to 1."
            )
        together = parts[0][1].copy()
        if together.get("pooled_output") is not None:
            together["pooled_output"] = torch.cat([part[1]["pooled_output"] for part in parts])
        return [[torch.cat([part[0] for part in parts]), together]]


def parse_prompts(text: str) -> list[str]:
    """One prompt per line; blank lines and lines that begin with # are left out. Raises ValueError if none is left."""
    prompts = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ValueError("There are no prompts: write at least one, one per line.")
    return prompts


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
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that belong to the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a portrait of a woman in a cafe\na street in the rain",
                    tooltip="One prompt per line. Lines that begin with # are left out.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *text_files()],
                    default=NO_FILE,
                    tooltip="Take the prompts from a .txt file in ComfyUI's input folder instead, one per line.",
                ),
            ],
            outputs=[DatasetType.Output(display_name="dataset")],
        )

    @classmethod
    def validate_inputs(cls, text=None, file=None):
        if text is not None and file == NO_FILE:
            try:
                parse_prompts(text)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=NO_FILE, **_):
        return None if file == NO_FILE else os.path.getmtime(_input_file(file))

    @classmethod
    def execute(cls, clip, text, file) -> io.NodeOutput:
        prompts = parse_prompts(text if file == NO_FILE else _input_file(file).read_text("utf-8-sig"))
        return io.NodeOutput(Prompts(prompts, [clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in prompts]))


def _input_file(name: str) -> Path:
    """A file directly in the input folder; raises ValueError for anything else."""
    if name not in text_files():
        raise ValueError(f'There is no file "{name}" in the input folder {folder_paths.get_input_directory()}.')
    return Path(folder_paths.get_input_directory()) / name
