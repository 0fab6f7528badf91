"""A folder of photos: which pictures are in it, and the caption of each."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..language import called, names, say
from .captions import CaptionFiles, caption_from_name, caption_in, means_more, readable

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
OF_SYSTEMS = ("thumbs.db", "desktop.ini")  # nobody put them there
REPEATS = re.compile(r"\d+_.*")  # names of folders as other trainers read them: how often, and what
NO_SUFFIXES = names("links", "without suffix")  # counted among suffixes
LINKS, WITHOUT_SUFFIX = NO_SUFFIXES


@dataclass(frozen=True)
class Photo:
    """unusable: why it can't be used, where that is known without a look into it; else empty.

    reference: what an editing model is given beside the caption; see `references.py`.
    """

    file: Path
    caption: str
    unusable: str = ""
    reference: "Photo | None" = None


@dataclass(frozen=True, kw_only=True)
class FolderScan:
    """What is in a folder of photos.

    uncaptioned: how many photos have no caption of their own, `empty` of them a file without a word.
    unread: of other files, how many there are by suffix; links and folders that are links count as LINKS.
    repeats: a folder inside whose name asks other trainers for repeats, such as 10_cat; empty without one.
    literal: captions with what would be wildcards or tags elsewhere.
    """

    photos: list[Photo]
    uncaptioned: int = 0
    empty: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    repeats: str = ""
    literal: Sequence[str] = ()

    def notes(self, default_caption: str = "") -> list[str]:
        """What a user should know of it, in sentences."""
        notes = []
        if self.uncaptioned:
            used = say("default_caption is used") if default_caption.strip() else say("their file names are used")
            empty = say(" ({count} with an empty one)", count=self.empty) if self.empty else ""
            notes.append(
                say("{count} without a caption{empty}: {used}.", count=self.uncaptioned, empty=empty, used=used)
            )
        if self.literal:
            notes.append(
                say(
                    "{count} captions with what looks like wildcards or tags of other programs, read as they are "
                    'written: "{first}".',
                    count=len(self.literal),
                    first=self.literal[0][:60],
                )
            )
        if self.unread:
            notes.append(self._about_unread())
        if self.repeats:
            notes.append(say("The folder {folder} repeats nothing here: each photo counts once.", folder=self.repeats))
        return notes

    def _about_unread(self) -> str:
        counts = ", ".join(f"{called(kind, NO_SUFFIXES)} {count}" for kind, count in self.unread.most_common())
        return say("{count} files not read: {counts}.", count=sum(self.unread.values()), counts=counts)


def scan_folder(folder: Path, default_caption: str = "") -> FolderScan:
    """The pictures in a folder and in those inside it, by name; hidden ones are passed over. None is opened.

    A caption is in a file beside the picture (see CAPTIONS; small and capital letters count as the same); where there
    is none, or an empty one, it is `default_caption`, or, if that is empty too, the file's name. Links that lead out
    of the folder are not followed: a picture is unusable then, a caption not read.
    Raises ValueError without a picture, and for captions that are not UTF-8 or too long.
    """
    photos = []
    uncaptioned = 0
    empty = 0
    unread: Counter[str] = Counter()
    repeats = ""
    wrong: list[str] = []
    literal = []
    for place in walk(folder):
        unread[LINKS] += place.links
        if REPEATS.fullmatch(place.folder.name) and place.folder != folder:
            repeats = repeats or readable(place.folder.name)
        captions = CaptionFiles(place.files)
        used = set()
        for picture, unusable in place.pictures.items():
            files = captions.of(picture)
            used.update(files)
            own = first_caption(files, wrong)
            uncaptioned += not own
            empty += bool(files) and not own
            caption = own or default_caption.strip() or caption_from_name(picture)
            literal += [caption] if means_more(caption) else []
            photos.append(Photo(picture, caption, unusable))
        rest = (file for file in place.files if file not in used and file.name.lower() not in OF_SYSTEMS)
        unread.update(readable(file.suffix.lower()) or WITHOUT_SUFFIX for file in rest)
    if wrong:
        raise ValueError(wrong[0] + (f" {len(wrong) - 1} more captions can't be read." if len(wrong) > 1 else ""))
    if not photos:
        raise ValueError(f"There is no picture in {folder}: put some there ({', '.join(SUFFIXES)}).")
    photos.sort(key=lambda photo: photo.file)
    return FolderScan(
        photos=photos, uncaptioned=uncaptioned, empty=empty, unread=+unread, repeats=repeats, literal=literal
    )


def captions_among(files: Sequence[Path]) -> set[Path]:
    """Those of a folder's files that `scan_folder` would read captions of its pictures in."""
    captions = CaptionFiles(files)
    return {caption for file in files if is_picture(file.name) for caption in captions.of(file)}


def first_caption(files: Sequence[Path], wrong: list[str]) -> str:
    """The first caption in these files, or empty; what can't be read on the way is said in `wrong`."""
    caption = ""
    for file in files:
        try:
            caption = caption or caption_in(file)
        except ValueError as error:
            wrong.append(str(error))
    return caption


def holds_a_picture(folder: Path) -> bool:
    """Whether there is one, so far as names tell: no file is asked for, as a menu of all folders is made of this."""
    return any(is_picture(name) for _, _, inside in _folders(folder) for name in inside)


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a photo; hidden ones are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """A folder's own files that are not hidden: pictures, with why they can't be used, and others.

    links: how many others are links out of the folder of photos, or folders.
    """

    folder: Path
    pictures: dict[Path, str]
    files: list[Path]
    links: int


def walk(folder: Path) -> Iterator[FolderFiles]:
    """The folder and those inside it that are not hidden; links to folders are not followed."""
    root = folder.resolve()
    for place, folders, inside in _folders(folder):
        pictures = {}
        files = []
        links = sum((place / name).is_symlink() for name in folders)
        for file in (place / name for name in sorted(inside) if not name.startswith(".")):
            leads = where_it_leads(file, root)
            if is_picture(file.name):
                pictures[file] = leads
            elif leads:
                links += 1
            else:
                files.append(file)
        yield FolderFiles(folder=place, pictures=pictures, files=files, links=links)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder that `walk` goes into, with the names of those in it that are not hidden, and of all its files."""
    root = folder.resolve()
    for name, folders, inside in os.walk(folder):
        place = Path(name)
        if not place.resolve().is_relative_to(root):  # Windows has links that os.walk follows
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, folders, inside


def where_it_leads(file: Path, root: Path) -> str:
    """Why what a name stands for is not read, which reads on from the name; empty for a file in the folder `root`."""
    if file.is_symlink():
        if not file.exists():
            return "is a link to nowhere"
        if not file.resolve().is_relative_to(root):
            return "is a link out of the folder: copy the picture there"
    return "" if file.is_file() else "is no file"
