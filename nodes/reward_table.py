"""SRPO_RewardTable: what a reward thinks of pictures, before it is let at a model."""

import logging

import comfy.model_management
import torch
from comfy_api.latest import io

from ..srpo_core.algorithm.objective import parse_words
from ..srpo_core.pictures import to_tensor
from ..srpo_core.report.reward_table import MAPPED, ask_for, check_table_words, find_saliency, score_table
from ..srpo_core.report.sheet import thumbnail_size
from ..srpo_core.report.table_picture import LARGE, ROWS, draw_table
from ..srpo_core.rewards import Reward, name_of
from .checked import answer_of, checked
from .host.progress import Progress, show_text
from .outputs import preview
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
            search_aliases=[
                "score images",
                "hps",
                "pickscore",
                "clip score",
                "aesthetic",
                "rank images",
                "best of n",
                "srpo",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                RewardModelType.Input("reward", tooltip="The reward model that scores the pictures."),
                io.Image.Input("images", tooltip="The pictures to score: a batch."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    placeholder="Prompt: what the pictures were made from",
                    tooltip="What the pictures were made from. It may be empty.",
                ),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    placeholder="Words to try, one per line",
                    tooltip="The words to try, one per line; each is put before the prompt. Without any the prompt "
                    "alone is scored.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    placeholder="Words to try against them, one per line",
                    tooltip="The words to try against them, one per line. With any, pictures are ranked by the "
                    "words-gap.",
                ),
                io.Int.Input(
                    "best", default=1, min=1, max=4096, tooltip="How many of the best pictures to hand on, best first."
                ),
                io.Boolean.Input(
                    "show_gradients",
                    default=True,
                    tooltip=f"Whether to show where each word looks in the {MAPPED} best pictures. That costs one "
                    "backward per word and picture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="table", tooltip="The picture that the node shows."),
                io.Image.Output(display_name="best images", tooltip="The best pictures as they came, best first."),
                io.String.Output(display_name="ranking", tooltip="All pictures, best first, one per line."),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="The places of the best pictures in the batch, counted from 0.",
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="What the best pictures are ranked by."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, words: str | None = None, negative: str | None = None) -> bool | str:
        """The words, where both lists are typed on the node itself."""
        return True if words is None or negative is None else answer_of(check_typed_words, words, negative)

    @classmethod
    @checked
    def execute(
        cls,
        reward: Reward,
        images: torch.Tensor,
        prompt: str,
        words: str,
        negative: str,
        best: int,
        show_gradients: bool,
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        columns = ask_for(reward, prompt, parse_words(words), parse_words(negative))
        maps = min(MAPPED, len(images)) * len(columns) if show_gradients else 0
        on_progress = Progress(len(images) + maps)

        table = score_table(reward, images, columns, device=device, on_progress=on_progress)
        saliency = {}
        if show_gradients:
            size = thumbnail_size(images, LARGE)
            saliency = find_saliency(reward, images, table, size, device=device, on_progress=on_progress)
            if not saliency:
                log.warning("%s has no gradient at the pixels: there are no maps to show.", name_of(reward))
        sheet = to_tensor(draw_table(images, table, saliency, prompt=prompt, reward=name_of(reward)))
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
            ui=preview(sheet, shown, cls),
        )


def check_typed_words(words: str, negative: str):
    """Raises ValueError as `parse_words` and `check_table_words` do."""
    check_table_words(parse_words(words), parse_words(negative))
