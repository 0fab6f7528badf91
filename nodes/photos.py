"""SRPO_Photos: photos to train on, in place of the model's own pictures."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch
from comfy_api.latest import io

from ..srpo_core.algorithm.protocols import Dataset
from ..srpo_core.data.photo_files import FolderScan, holds_a_picture, scan_folder, walk
from ..srpo_core.data.photo_latents import Latents, Photos, Store
from ..srpo_core.data.photo_pixels import sizes_of_area
from ..srpo_core.data.photo_sizes import Sized, measure_all
from ..srpo_core.data.references import with_references
from ..srpo_core.digest import digest
from ..srpo_core.language import say, say_many
from .checked import answer_of, checked
from .folders import cache_folder
from .host.progress import Progress, Steps, show_text
from .inputs import size_inputs
from .outputs import summary_output
from .prompts import Prompts
from .sockets import CATEGORY, DatasetType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

log = logging.getLogger(__name__)

NO_REFERENCES = "none"
DIMENSIONS = (2, 3)  # of the latents of pictures, and of videos, of which a picture is one frame


def for_model(dataset: Dataset | None, model: ModelPatcher) -> Dataset | None:
    """The dataset with its photos' latents, if it has any, in the space of this MODEL, as its rollouts are.

    Raises ValueError if they are not for this model.
    """
    from .host.flow_model import check_latent
    from .host.patcher.carried import latent_in

    if not isinstance(dataset, Photos):
        return dataset
    check_latent(model, dataset.latents([0]))
    return replace(dataset, to_model=partial(latent_in, model))


def store_of(vae: VAE | None) -> Store:
    """The store of this VAE's latents. Raises ValueError for none, and for a VAE of anything but pictures."""
    if vae is None:
        raise ValueError("There is no VAE: the file that vae comes from has none. Use Load VAE.")
    vae.throw_exception_if_invalid()
    if vae.latent_dim not in DIMENSIONS:
        raise ValueError(
            f"This VAE has latents of {vae.latent_dim} dimensions, and pictures have 2, single frames of a video 3: "
            "load the VAE of the model that you train, such as ae.safetensors for FLUX."
        )

    @torch.inference_mode()  # a photo may be encoded when an update asks for it, outside of that mode
    def encode(image: torch.Tensor) -> torch.Tensor:
        return vae.encode(image.movedim(1, -1))

    return Store(cache_folder("photos"), encode, digest([vae.vae_dtype, vae.get_sd()]))


def photo_folder(name: str) -> Path:
    """A folder inside the input folder. Raises ValueError for anything else."""
    folder = Path(folder_paths.get_input_directory()) / name
    known = name in folder_paths.get_input_subfolders()
    if not known or not folder_paths.is_within_directory(folder_paths.get_input_directory(), str(folder)):
        raise ValueError(
            f'There is no folder "{name}" in the input folder {folder_paths.get_input_directory()}: put your photos '
            "into a folder there and press R."
        )
    return folder


def folders_to_choose_from() -> list[str]:
    """The folders in the input folder, first those that hold pictures: the host puts empty ones of its own there."""
    names = folder_paths.get_input_subfolders()
    return sorted(names, key=lambda name: not holds_a_picture(Path(folder_paths.get_input_directory()) / name))


def check_photos(name: str):
    """Raises ValueError for a folder that is not in the input folder, or holds no picture."""
    folder = photo_folder(name)
    if not holds_a_picture(folder):
        scan_folder(folder)


def check_references(name: str):
    """Raises ValueError likewise, where a folder of references is chosen."""
    if name != NO_REFERENCES:
        check_photos(name)


def scanned(folder: str, references: str, default_caption: str) -> tuple[FolderScan, list[str]]:
    """What is in a folder of the input folder, and what there is to say of its references, each with its photo."""
    found = scan_folder(photo_folder(folder), default_caption)
    if references == NO_REFERENCES:
        return found, []
    photos, unused = with_references(found.photos, photo_folder(folder), photo_folder(references))
    notes = [say("Each with its reference from {folder}.", folder=references)]
    if unused:
        log.warning("References that belong to no photo: %s", ", ".join(unused))
        notes.append(say("{count} references belong to no photo, such as {first}.", count=len(unused), first=unused[0]))
    return replace(found, photos=photos), notes


def photos_summary(photos: list[Sized], left_out: list[str], notes: list[str]) -> str:
    """What the dataset is, and what was not understood in its folder, for the node to show."""
    many = say_many(len(photos), "{count} photo", "{count} photos")
    sizes = len({photo.size for photo in photos})
    sentences = [say_many(sizes, "{photos} in {count} size.", "{photos} in {count} sizes.", photos=many)]
    sentences += notes
    if left_out:
        sentences.append(say("{count} left out, see the log: {first}", count=len(left_out), first=left_out[0]))
    return " ".join(sentences)


def replaced(*datasets: Dataset | None) -> str:
    """The sentence about photos that turned out broken when they were drawn; empty if none did."""
    broken = [why for data in datasets if isinstance(data, Photos) for why in data.encoded.left_out.values()]
    if not broken:
        return ""
    return say_many(
        len(broken),
        "{count} photo can't be used, and the next one was taken instead, see the log: {first}",
        "{count} photos can't be used, and the next one was taken instead, see the log: {first}",
        first=broken[0],
    )


class PhotosNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Photos",
            display_name="SRPO Photos",
            category=CATEGORY,
            description="Photos to train on: steps begin from them, and the model makes no pictures of its own. "
            "Each is encoded once, when it is first drawn, and kept on disk.",
            search_aliases=["train on photos", "offline", "dataset", "image folder", "load images", "srpo"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that belong to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Combo.Input(
                    "folder",
                    options=folders_to_choose_from(),
                    tooltip="A folder in ComfyUI's input folder. A caption is in the .txt beside its picture.",
                ),
                *size_inputs(
                    "The width that makes, with the height, the area that photos are shrunk to; each keeps about its "
                    "shape.",
                    "The height that makes, with the width, the area that photos are shrunk to; each keeps about its "
                    "shape.",
                ),
                io.String.Input(
                    "default_caption",
                    default="",
                    tooltip="The caption of photos that have none. Empty: the file's name, with spaces for _ and -.",
                ),
                io.Combo.Input(
                    "references",
                    options=[NO_REFERENCES, *folders_to_choose_from()],
                    default=NO_REFERENCES,
                    optional=True,
                    tooltip="The folder in ComfyUI's input folder with each photo's picture before the edit, under the "
                    "same name: for models that edit. The photos are the results, the captions what to do.",
                ),
                io.Boolean.Input(
                    "encoder_sees_reference",
                    default=False,
                    optional=True,
                    tooltip="Whether the text encoders see the reference, too, as those of Qwen-Image-Edit do. Off for "
                    "FLUX.1 Kontext, FLUX.2 and OmniGen2.",
                ),
            ],
            outputs=[
                DatasetType.Output(display_name="dataset", tooltip="The photos, for SRPO Train or SRPO Mix."),
                summary_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, references: str | None = None) -> bool | str:
        found = True if folder is None else answer_of(check_photos, folder)
        return found if found is not True or references is None else answer_of(check_references, references)

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, references: str | None = NO_REFERENCES, **_: Any
    ) -> str | float:
        """Changes with each file that comes, goes or is written to; always, where a folder is linked."""
        if folder is None or references is None:
            return float("nan")  # a new one each time: the host compares what is the same object as equal
        names = [folder, *([] if references == NO_REFERENCES else [references])]
        places = [place for name in names for place in walk(photo_folder(name))]
        files = [file for place in places for file in (*place.pictures, *place.files)]
        stats = [(str(file), file.lstat()) for file in sorted(files)]
        return hashlib.sha256(repr([(n, s.st_size, s.st_mtime_ns) for n, s in stats]).encode()).hexdigest()

    @classmethod
    @checked
    def execute(
        cls,
        clip: CLIP,
        vae: VAE,
        folder: str,
        width: int,
        height: int,
        default_caption: str,
        references: str,
        encoder_sees_reference: bool,
    ) -> io.NodeOutput:
        from .host.text_encoder import Encoded

        found, notes = scanned(folder, references, default_caption)
        store = store_of(vae)
        sizes = sizes_of_area(width, height, 2 * vae.spacial_compression_encode())  # a token of the model is 2x2
        photos, left_out = measure_all(found.photos, sizes, Progress(len(found.photos)))
        latents = Latents(photos, store, Steps())
        seen = encoder_sees_reference and references != NO_REFERENCES
        picture = (lambda index: latents.reference_pixels(index).movedim(1, -1)) if seen else None
        prompts = Prompts(latents.captions, Encoded(clip, latents.captions, cache_folder("prompts"), picture))
        text = photos_summary(photos, left_out, [*notes, *found.notes(default_caption)])
        log.info("%s: %s", folder, text)
        show_text(text, cls.hidden.unique_id)
        return io.NodeOutput(Photos(latents, prompts), text)
