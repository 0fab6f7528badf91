"""The reward models that their authors published: where each is, how large, and where it goes."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..files import file_digest

log = logging.getLogger(__name__)

HUB = "huggingface.co"


@dataclass(frozen=True)
class Published:
    """One model file.

    repository: on the Hugging Face hub. file: its name there. local: its name here, which no other model has.
    gigabytes: about. folder: of ComfyUI's models/. licence: None where the authors name none. tokenizer: a second
    file that it needs beside it.
    """

    name: str
    repository: str
    file: str
    local: str
    gigabytes: float
    folder: str = "rewards"
    licence: str | None = None
    tokenizer: str | None = None

    @property
    def files(self) -> dict[str, str]:
        """The files on the hub, by the names that they get here; the model last, so that it is there with the rest."""
        beside = {f"{Path(self.local).stem}.{self.tokenizer}": self.tokenizer} if self.tokenizer else {}
        return beside | {self.local: self.file}


PUBLISHED = (
    Published("HPS v2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.pt", 2.0, licence="Apache-2.0"),
    Published("HPS v2", "xswu/HPSv2", "HPS_v2_compressed.pt", "HPS_v2_compressed.pt", 2.0, licence="Apache-2.0"),
    Published("PickScore v1", "yuvalkirstain/PickScore_v1", "model.safetensors", "PickScore_v1.safetensors", 3.9),
    Published("MPS", "RE-N-Y/mpsv1", "model.safetensors", "MPS_overall.safetensors", 4.4),
    Published(
        "CLIP L/14 (OpenAI)",
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "clip-vit-large-patch14.safetensors",
        1.7,
    ),
    Published(
        "CLIP H/14 (LAION)",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "open_clip_pytorch_model.bin",
        "CLIP-ViT-H-14-laion2B-s32B-b79K.bin",
        3.9,
        licence="MIT",
    ),
    Published(
        "CLIP bigG/14 (LAION)",
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        "open_clip_pytorch_model.safetensors",
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
        10.2,
        licence="MIT",
    ),
    Published(
        "SigLIP so400m",
        "google/siglip-so400m-patch14-384",
        "model.safetensors",
        "siglip-so400m-patch14-384.safetensors",
        3.5,
        licence="Apache-2.0",
        tokenizer="spiece.model",
    ),
    Published(
        "SigLIP2 so400m",
        "google/siglip2-so400m-patch14-384",
        "model.safetensors",
        "siglip2-so400m-patch14-384.safetensors",
        4.5,
        licence="Apache-2.0",
        tokenizer="tokenizer.json",
    ),
    Published(
        "LAION aesthetic predictor",
        "trl-lib/ddpo-aesthetic-predictor",
        "aesthetic-model.pth",
        "laion-aesthetic-l14-linearMSE.pth",
        0.004,
    ),
    Published(
        "SigLIP so400m image tower (for the aesthetic predictor v2.5)",
        "Comfy-Org/sigclip_vision_384",
        "sigclip_vision_patch14_384.safetensors",
        "sigclip_vision_patch14_384.safetensors",
        0.86,
        folder="clip_vision",
    ),
)
ELSEWHERE = {  # published, but not on the hub: what to do by hand
    "aesthetic predictor v2.5": (
        "models/aesthetic_predictor_v2_5.pth of github.com/discus0434/aesthetic-predictor-v2-5 (a few MB): put it "
        "into models/rewards."
    ),
}


def missing(published: Published, folder: Path) -> str:
    """The sentence for a file that is not in `folder`: its name, its size, where to get it and where to put it."""
    files = [f"{file} as '{local}'" for local, file in published.files.items()]
    return (
        f"{published.name} is missing (about {published.gigabytes:g} GB): get {' and '.join(files)} from "
        f"{HUB}/{published.repository} and put {'it' if len(files) == 1 else 'them'} into {folder}."
    )


def fetch(published: Published, folder: Path) -> Path:
    """Download what is not there yet into `folder`; returns the path of the model file.

    A file is there whole, with the size and the SHA-256 that the hub tells, or not at all. What has arrived when a
    download breaks off is kept, and the next call goes on from there. Raises OSError, a sentence, when one fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for local, file in published.files.items():
        if not (folder / local).exists():
            try:
                fetch_file(published.repository, file, folder / local)
            except Exception as error:  # of the network, the hub or the disk: each library has its own
                raise OSError(
                    f"The download of {file} from {HUB}/{published.repository} failed ({error}). What has arrived is "
                    f"kept: try again, or do it by hand. {missing(published, folder)}"
                ) from error
    return folder / published.local


def fetch_file(repository: str, file: str, target: Path):
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    part = target.with_name(f".{target.name}.download")  # beside the target, so that the file is only renamed
    log.info("Downloading %s from %s/%s to %s.", file, HUB, repository, target)
    arrived = Path(hf_hub_download(repository, file, local_dir=part))
    told = get_hf_file_metadata(hf_hub_url(repository, file))
    try:
        check_whole(arrived, told.size, told.etag)
    except ValueError:
        shutil.rmtree(part, ignore_errors=True)  # nothing in it can be built on
        raise
    os.replace(arrived, target)
    shutil.rmtree(part, ignore_errors=True)


def check_whole(path: Path, size: int | None, etag: str | None):
    """etag: the hub's, the SHA-256 of a large file, something shorter for a small one. Raises ValueError."""
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"{path.stat().st_size} bytes arrived of {size}")
    if etag and len(etag) == 64 and file_digest(path, "sha256") != etag:
        raise ValueError("what arrived is not what the hub has: its SHA-256 differs")
