"""SRPO_RewardTable: what a reward thinks of pictures, before it is let at a model."""

import logging

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..srpo_core.algorithm.objective import parse_words
from ..srpo_core.report.reward_table import MAPPED, ask_for, check_words, find_looks, score_table
from ..srpo_core.report.sheet import thumbnail_size
from ..srpo_core.report.table_picture import LARGE, ROWS, draw_table
from ..srpo_core.rewards import name_of
from .checked import checked
from .host.progress import Progress, show_text
from .sockets import CATEGORY, RewardModelType

log = logging.getLogger(__name__)


class RewardTable(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_RewardTable",
            display_name="SRPO Reward Table",
            category=CATEGORY,
            description="Scores pictures with a reward, against a prompt and any number of words, ranks them and "
            "hands on the best. Shows what each word is worth and where in the picture it looks.",
            search_aliases=["pickscore", "hps", "clip score", "aesthetic score", "image ranking", "best of n"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                RewardModelType.Input("reward", tooltip="The reward model."),
                io.Image.Input("images", tooltip="The pictures to score: a batch."),
                io.String.Input(
                    "prompt", multiline=True, default="", tooltip="What the pictures were made from. May be empty."
                ),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    tooltip="Words to try, one per line; each is put before the prompt. May be empty: then the prompt "
                    "alone is scored.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="Words to try against them, one per line. With any, pictures are ranked by the words-gap.",
                ),
                io.Int.Input(
                    "best", default=1, min=1, max=4096, tooltip="How many of the best pictures to hand on, best first."
                ),
                io.Boolean.Input(
                    "show_gradients",
                    default=True,
                    tooltip=f"Show where each word looks in the {MAPPED} best pictures. Costs one backward per word "
                    "and picture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="table"),
                io.Image.Output(display_name="best images", tooltip="The best pictures as they came, best first."),
                io.String.Output(display_name="ranking", tooltip="All pictures, best first, one per line."),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Of the best pictures in the batch, counted from 0.",
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="Of the best pictures: what they are ranked by."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, words=None, negative=None):
        """The words, where both lists are typed on the node itself."""
        if words is not None and negative is not None:
            try:
                check_words(parse_words(words), parse_words(negative))
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    @checked
    def execute(cls, reward, images, prompt, words, negative, best, show_gradients) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        columns = ask_for(reward, prompt, parse_words(words), parse_words(negative))
        maps = min(MAPPED, len(images)) * len(columns) if show_gradients else 0
        on_progress = Progress(len(images) + maps)

        table = score_table(reward, images, columns, device, on_progress)
        looks = {}
        if show_gradients:
            looks = find_looks(reward, images, table, thumbnail_size(images, LARGE), device, on_progress)
            if not looks:
                log.warning("%s has no gradient at the pixels: there are no maps to show.", name_of(reward))
        picture = draw_table(images, table, looks, prompt, name_of(reward))
        sheet = torch.from_numpy(np.asarray(picture) / np.float32(255))[None]
        first = table.ranking[:best]
        lines = table.lines()
        shown = "\n".join([*lines[:ROWS], *[f"and {len(lines) - ROWS} more"] * (len(lines) > ROWS)])
        show_text(shown, cls.hidden.unique_id)
        return io.NodeOutput(
            sheet,
            images[first],
            "\n".join(lines),
            first,
            table.merit[first].tolist(),
            ui={**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(shown).as_dict()},
        )
