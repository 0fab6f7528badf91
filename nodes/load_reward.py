"""SRPO_LoadReward: a reward model from a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..srpo_core.rewards.activation import ACTIVATIONS
from ..srpo_core.rewards.mps import CONDITIONS
from .checked import answer_of, check_choice, host_checked
from .folders import cache_folder
from .sockets import CATEGORY, RewardModelType

if TYPE_CHECKING:
    from ..srpo_core.rewards.published import Published

NONE = "none"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FAMILIES = {"auto": None, "HPS": True, "CLIP": False}
JUDGED = list(CONDITIONS)  # the first is the default
ALSO = ("clip_vision", "text_encoders")  # where people keep such files too

folder_paths.add_model_folder_path("rewards", str(Path(folder_paths.models_dir) / "rewards"))
places, _ = folder_paths.folder_names_and_paths["rewards"]  # with those of extra_model_paths.yaml
folder_paths.folder_names_and_paths["rewards"] = (places, folder_paths.supported_pt_extensions)


def files_here() -> list[str]:
    """The names that a reward file can be chosen by: bare in models/rewards, with the folder elsewhere."""
    elsewhere = [f"{folder}/{name}" for folder in ALSO for name in folder_paths.get_filename_list(folder)]
    return [*folder_paths.get_filename_list("rewards"), *elsewhere]


def choices() -> list[str]:
    """What is here, and what is published."""
    from ..srpo_core.rewards.published import PUBLISHED

    here = files_here()
    return here + [p.local for p in PUBLISHED if not {p.local, f"{p.folder}/{p.local}"} & set(here)]


def path_of(name: str) -> Path | None:
    folder, _, rest = name.partition("/")
    found = folder_paths.get_full_path(folder, rest) if folder in ALSO else None
    found = found or next(filter(None, (folder_paths.get_full_path(f, name) for f in ("rewards", *ALSO))), None)
    return Path(found) if found else None


def unreadable(name: str) -> str | None:
    """What is wrong with a file that is listed and that path_of does not find, such as a link that leads nowhere."""
    from ..srpo_core.files import check_file

    folder, _, rest = name.partition("/")
    folders = [(folder, rest)] if folder in ALSO else [(each, name) for each in ("rewards", *ALSO)]
    for folder, inside in folders:
        for place in folder_paths.get_folder_paths(folder):
            path = Path(place) / os.path.relpath(os.path.join("/", inside), "/")  # no way out of it, as the host does
            if inside and "\0" not in inside and os.path.lexists(path):
                answer = answer_of(check_file, path)
                if answer is not True:
                    return answer
    return None


def reward_folder(folder: str = "rewards") -> Path:
    return Path(folder_paths.get_folder_paths(folder)[0])


def published(name: str) -> Published | None:
    from ..srpo_core.rewards.published import PUBLISHED

    return next((p for p in PUBLISHED if p.local == name), None)


def problem(name: str, download: bool) -> str | None:
    """Why a file of this name can't be had, in a sentence; None if it can."""
    from ..srpo_core.rewards.published import missing, named

    if not isinstance(name, str):
        return f"{name!r} is no reward model: choose a file, by its name."
    if path_of(name) or (download and published(name)):
        return None
    if wrong := unreadable(name):
        return wrong
    bare = Path(name).name
    for folder in folder_paths.folder_names_and_paths:
        if folder not in ("rewards", *ALSO, "custom_nodes") and folder_paths.get_full_path(folder, bare):
            return f"{bare} lies in models/{folder}: reward models belong into {named(reward_folder())}. Move it there."
    known = published(name)
    if known:
        return f"{missing(known, reward_folder(known.folder))} Or tick *download if missing*."
    return f'There is no reward model "{name}": put the file into {named(reward_folder())} and press R.'


def fetched(name: str, download: bool) -> Path:
    """The path of a file, downloaded first if it is not there and may be. Raises ValueError if it can't be had."""
    from ..srpo_core.rewards.published import fetch

    wrong = problem(name, download)
    if wrong:
        raise ValueError(wrong)
    known = published(name)
    return path_of(name) or fetch(known, reward_folder(known.folder), progress_of_bytes())


def progress_of_bytes() -> Callable[[int, int], None]:
    """A progress bar of a download, to be called with what has arrived; raises where the user pressed Cancel."""
    bar = comfy.utils.ProgressBar(1)

    def on_bytes(done: int, size: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, size)

    return on_bytes


class LoadReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_LoadReward",
            display_name="Load SRPO Reward",
            category=CATEGORY,
            description="Loads a reward model: HPS v2 and v2.1, PickScore, CLIP, SigLIP, SigLIP2, MPS, or an aesthetic "
            "predictor. Which one it is, the file itself tells.",
            search_aliases=["reward model", "hps", "hpsv2", "pickscore", "clip score", "aesthetic", "siglip", "srpo"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=choices(),
                    tooltip="The reward's file in models/rewards, models/clip_vision or models/clip; published ones "
                    "are listed.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPES],
                    default="auto",
                    tooltip="The type of the weights. auto is bf16, on a CPU fp32; bf16 halves the memory.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default="auto",
                    tooltip="Which of two models of the same layout it is, HPS or CLIP. auto is HPS if the file's name "
                    "has hps.",
                ),
                io.Combo.Input(
                    "activation",
                    options=list(ACTIVATIONS),
                    default="auto",
                    tooltip="The activation of a CLIP. auto is quick_gelu for sizes that OpenAI trained, else gelu; "
                    "LAION's L/14 needs gelu.",
                ),
                io.Combo.Input(
                    "backbone",
                    options=[NONE, *choices()],
                    default=NONE,
                    tooltip="The SigLIP or CLIP whose image feature an aesthetic predictor reads; for those alone.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Whether what is missing is fetched from huggingface.co. Nothing is fetched unless this is "
                    "ticked.",
                ),
                io.Combo.Input(
                    "condition",
                    options=JUDGED,
                    default=JUDGED[0],
                    optional=True,
                    tooltip="What of a picture MPS judges; for that model alone.",
                ),
            ],
            outputs=[
                RewardModelType.Output(display_name="reward", tooltip="The reward model, for all nodes with a reward.")
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, download: bool | None = False) -> bool | str:
        """The file, where it is not linked. The host says a sentence for each input named here: the backbone waits."""
        return True if None in (file, download) else problem(file, download) or True

    @classmethod
    @host_checked
    def execute(
        cls,
        file: str,
        dtype: str,
        family: str,
        activation: str,
        backbone: str,
        download: bool,
        condition: str = JUDGED[0],
    ) -> io.NodeOutput:
        from ..srpo_core.rewards.load import load_reward
        from .host.reward import managed

        check_choice("dtype", dtype, ["auto", *DTYPES])
        check_choice("family", family, list(FAMILIES))
        check_choice("activation", activation, list(ACTIVATIONS))
        check_choice("condition", condition, JUDGED)
        for name in (file, backbone):
            if name != NONE and (wrong := problem(name, download)):
                raise ValueError(wrong)  # before anything is downloaded
        cpu = comfy.model_management.get_torch_device().type == "cpu"
        reward = load_reward(
            fetched(file, download),
            dtype=DTYPES[("fp32" if cpu else "bf16") if dtype == "auto" else dtype],
            hps=FAMILIES[family],
            activation=activation,
            backbone=None if backbone == NONE else fetched(backbone, download),
            condition=condition,
            features_folder=cache_folder("text_features"),
        )
        reward.name = Path(file).stem
        return io.NodeOutput(managed(reward))
