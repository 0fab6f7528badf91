"""The reward models that their authors published: where each is, how large, and where it goes."""

import errno
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ..files import file_digest, replace

log = logging.getLogger(__name__)

HUB = "huggingface.co"
CHUNK = 2**18  # bytes, between which Cancel is heard
PATIENCE = 5.0  # seconds without a byte, after which a connection is taken up anew
TRIES = 5  # connections in a row that bring nothing
PAUSE = 0.5  # seconds between two of them
PARTIAL = 206  # how HTTP says that an answer goes on where the request asked
TOO_MANY = 429


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model file.

    repository: on the Hugging Face hub. file: its name there. local: its name here, which no other model has.
    gigabytes: about. folder: of ComfyUI's models/. tokenizer: a second file that it needs beside it.
    """

    name: str
    repository: str
    file: str
    local: str
    gigabytes: float
    folder: str = "rewards"
    tokenizer: str | None = None

    @property
    def files(self) -> dict[str, str]:
        """The files on the hub, by the names that they get here; the model last, so that it is there with the rest."""
        beside = {f"{Path(self.local).stem}.{self.tokenizer}": self.tokenizer} if self.tokenizer else {}
        return beside | {self.local: self.file}


PUBLISHED = (
    Published(
        name="HPS v2.1",
        repository="xswu/HPSv2",
        file="HPS_v2.1_compressed.pt",
        local="HPS_v2.1_compressed.pt",
        gigabytes=2.0,
    ),
    Published(
        name="HPS v2",
        repository="xswu/HPSv2",
        file="HPS_v2_compressed.pt",
        local="HPS_v2_compressed.pt",
        gigabytes=2.0,
    ),
    Published(
        name="PickScore v1",
        repository="yuvalkirstain/PickScore_v1",
        file="model.safetensors",
        local="PickScore_v1.safetensors",
        gigabytes=3.9,
    ),
    Published(
        name="MPS",
        repository="RE-N-Y/mpsv1",
        file="model.safetensors",
        local="MPS_overall.safetensors",
        gigabytes=4.4,
    ),
    Published(
        name="CLIP L/14 (OpenAI)",
        repository="openai/clip-vit-large-patch14",
        file="model.safetensors",
        local="clip-vit-large-patch14.safetensors",
        gigabytes=1.7,
    ),
    Published(
        name="CLIP H/14 (LAION)",
        repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        file="open_clip_pytorch_model.bin",
        local="CLIP-ViT-H-14-laion2B-s32B-b79K.bin",
        gigabytes=3.9,
    ),
    Published(
        name="CLIP bigG/14 (LAION)",
        repository="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        file="open_clip_pytorch_model.safetensors",
        local="CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
        gigabytes=10.2,
    ),
    Published(
        name="SigLIP so400m",
        repository="google/siglip-so400m-patch14-384",
        file="model.safetensors",
        local="siglip-so400m-patch14-384.safetensors",
        gigabytes=3.5,
        tokenizer="spiece.model",
    ),
    Published(
        name="SigLIP2 so400m",
        repository="google/siglip2-so400m-patch14-384",
        file="model.safetensors",
        local="siglip2-so400m-patch14-384.safetensors",
        gigabytes=4.5,
        tokenizer="tokenizer.json",
    ),
    Published(
        name="LAION aesthetic predictor",
        repository="trl-lib/ddpo-aesthetic-predictor",
        file="aesthetic-model.pth",
        local="laion-aesthetic-l14-linearMSE.pth",
        gigabytes=0.004,
    ),
    Published(
        name="SigLIP so400m image tower (for the aesthetic predictor v2.5)",
        repository="Comfy-Org/sigclip_vision_384",
        file="sigclip_vision_patch14_384.safetensors",
        local="sigclip_vision_patch14_384.safetensors",
        gigabytes=0.86,
        folder="clip_vision",
    ),
)


def missing(published: Published, folder: Path) -> str:
    """The sentence for a file that is not in `folder`: its name, its size, where to get it and where to put it.

    Also that the folder is to be made first, where it is not there.
    """
    files = [f"{file} as '{local}'" for local, file in published.files.items()]
    return (
        f"{published.name} is missing (about {published.gigabytes:g} GB): get {' and '.join(files)} from "
        f"{HUB}/{published.repository} and put {'it' if len(files) == 1 else 'them'} into {named(folder)}."
    )


def named(folder: Path) -> str:
    """A folder as a sentence names it: whoever shall put a file there must make it first, where it is not there."""
    return str(folder) if folder.is_dir() else f"{folder} (make that folder)"


OnBytes = Callable[[int, int], None]  # how many have arrived of a file, and how many it has


def fetch(published: Published, folder: Path, on_bytes: OnBytes) -> Path:
    """Download what is not there yet into `folder`; returns the path of the model file.

    A file is there whole, with the size that the hub tells and the SHA-256 where it tells one, or not at all. on_bytes:
    called at least every few seconds with how much of a file has arrived and its size; what it raises ends the
    download, of which nothing is left then. A connection that breaks is taken up again where it broke. Raises
    RuntimeError, a sentence, when a download fails, and leaves nothing of it either.
    """
    for local, file in published.files.items():
        if not (folder / local).exists():
            try:
                remote = look_up(published.repository, file)
                fetch_file(remote, folder / local, on_bytes)
            except DownloadError as error:
                raise RuntimeError(
                    f"The download of {file} from {HUB}/{published.repository} failed ({error}). Try again, or do it "
                    f"by hand. {missing(published, folder)}"
                ) from error
    return folder / published.local


class DownloadError(Exception):
    """What went wrong with the network, the hub or the disk."""


@dataclass(frozen=True)
class Remote:
    """A file of the hub. etag: the SHA-256 of a large file, something shorter for a small one."""

    url: str
    headers: dict[str, str]
    size: int
    etag: str | None


@contextmanager
def failing() -> Iterator[None]:
    """What goes wrong inside is a DownloadError: each library has its own."""
    try:
        yield
    except Exception as error:
        raise DownloadError(error) from error


def look_up(repository: str, file: str) -> Remote:
    """Raises DownloadError."""
    with failing():
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repository, file)
        told = get_hf_file_metadata(url, timeout=PATIENCE)
        if told.size is None:
            raise ConnectionError("the hub does not tell its size")
        return Remote(url, build_hf_headers(), told.size, told.etag)


def fetch_file(remote: Remote, target: Path, on_bytes: OnBytes):
    """Raises DownloadError, and what on_bytes raises; the target is whole or as it was."""
    part = target.with_name(f".{target.name}.download")  # beside the target, so that it is only renamed
    log.info("Downloading %s to %s.", remote.url, target)
    try:
        with failing():
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # of a process that was killed
            if (free := shutil.disk_usage(part.parent).free) < remote.size:
                raise OSError(f"it needs {remote.size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free: make room")
        with closing(download(remote, part)) as arriving:  # a file that is open can't be deleted on Windows
            for arrived in arriving:
                on_bytes(arrived, remote.size)
        with failing():
            check_download(part, remote.size, remote.etag)
            replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def download(remote: Remote, part: Path) -> Generator[int, None, None]:
    """Fill the file; yields how many bytes it has. Raises DownloadError once the hub sends nothing TRIES times."""
    failures = 0
    while failures < TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            for arrived in receive(remote, part, before):
                failures = 0
                yield arrived
            if part.stat().st_size >= remote.size:
                return
            broken: Exception = ConnectionError("the connection was closed")
        except (OSError, HTTPException) as error:
            if not_the_network(error):
                raise DownloadError(error) from error
            broken = error
        failures += 1
        yield part.stat().st_size if part.exists() else 0
        time.sleep(PAUSE)
    raise DownloadError(broken)


def receive(remote: Remote, part: Path, before: int) -> Iterator[int]:
    """One connection's bytes, from `before` on where the server can, else from the first."""
    ranged = {"Range": f"bytes={before}-"} if before else {}
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"} | ranged)
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)  # a token is for the hub, not for where its files lie
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        with part.open("ab" if answer.status == PARTIAL else "wb") as file:
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                file.flush()
                if file.tell() > remote.size:
                    raise DownloadError(f"more bytes came than the {remote.size} that the hub tells")
                yield file.tell()


def not_the_network(error: Exception) -> bool:
    """Whether trying again at once can't help: the disk, or a server that refuses."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code != TOO_MANY
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def check_download(path: Path, size: int, etag: str | None):
    """Raises ValueError unless the file has this size and, where the etag is one, this SHA-256; else logs that."""
    if path.stat().st_size != size:
        raise ValueError(f"{path.stat().st_size} bytes arrived of {size}")
    if not re.fullmatch("[0-9a-f]{64}", etag or ""):
        log.warning("%s: the hub tells no SHA-256 of it, so its size alone was checked (%d bytes).", path.name, size)
    elif file_digest(path, "sha256") != etag:
        raise ValueError("what arrived is not what the hub has: its SHA-256 differs")
