"""A folder of photos: their captions, the size that fits each one's shape, and the pixels cropped to it."""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .prompt_text import check_prompt, parse

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
OF_PLUG_IN = (".heic", ".heif")
# What a file is, its content says. Pillow runs programs for others; the last two it may know or not.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
CAPTIONS = (".txt", ".caption")  # as photo.txt or photo.jpg.txt
MOST_PIXELS = 89_478_485  # of a photo, before it is made smaller; Pillow warns of more
LONGEST_CAPTION = 100_000  # bytes of its file
OF_SYSTEMS = ("thumbs.db", "desktop.ini")  # nobody put them there
REPEATS = re.compile(r"\d+_.*")  # names of folders as other trainers read them: how often, and what
WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # modes
ORIENTATION = 0x0112  # the EXIF tag
TIFF_WIDTH = 256  # a tag, as the next one
TIFF_HEIGHT = 257
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
LONGEST = 2.0  # long side / short side of the sizes that photos are cropped to

Size = tuple[int, int]  # width, height in pixels


class Unusable(Exception):
    """Why a photo is left out; reads on from its file's name."""


@dataclass(frozen=True)
class Photo:
    """unusable: why it can't be used, where that is known without a look into it; else empty."""

    file: Path
    caption: str
    unusable: str = ""


@dataclass(frozen=True)
class Found:
    """What is in a folder of photos.

    uncaptioned: how many photos have no caption of their own, `empty` of them a file without a word.
    unread: of other files, how many there are by suffix; links and folders that are links count as "links".
    repeats: a folder inside whose name asks other trainers for repeats, such as 10_cat; empty without one.
    literal: captions with what would be wildcards or tags elsewhere.
    """

    photos: list[Photo]
    uncaptioned: int = 0
    empty: int = 0
    unread: Counter = field(default_factory=Counter)
    repeats: str = ""
    literal: Sequence[str] = ()

    def told(self, default_caption: str = "") -> list[str]:
        """What a user should know of it, in sentences."""
        said = []
        if self.uncaptioned:
            used = "default_caption is used" if default_caption.strip() else "their file names are used"
            empty = f" ({self.empty} with an empty one)" if self.empty else ""
            said.append(f"{self.uncaptioned} without a caption{empty}: {used}.")
        if self.literal:
            said.append(
                f"{len(self.literal)} captions with what looks like wildcards or tags of other programs, read as they "
                f'are written: "{self.literal[0][:60]}".'
            )
        if self.unread:
            counts = ", ".join(f"{kind} {count}" for kind, count in self.unread.most_common())
            said.append(f"{sum(self.unread.values())} files not read: {counts}.")
        if self.repeats:
            said.append(f"The folder {self.repeats} repeats nothing here: each photo counts once.")
        return said


def scan(folder: Path, default_caption: str = "") -> list[Photo]:
    """The pictures of a folder; see `look`."""
    return look(folder, default_caption).photos


def look(folder: Path, default_caption: str = "") -> Found:
    """The pictures in a folder and in those inside it, by name; hidden ones are passed over. None is opened.

    A caption is in a file beside the picture (see CAPTIONS; small and capital letters count as the same); where there
    is none, or an empty one, it is `default_caption`, or, if that is empty too, the file's name. Links that lead out
    of the folder are not followed: a picture is Unusable then, a caption not read.
    Raises ValueError without a picture, and for captions that are not UTF-8 or too long.
    """
    photos = []
    uncaptioned = 0
    empty = 0
    unread = Counter()
    repeats = ""
    wrong = []
    literal = []
    for place in walk(folder):
        unread["links"] += place.links
        if REPEATS.fullmatch(place.folder.name) and place.folder != folder:
            repeats = repeats or readable(place.folder.name)
        by_name = Names(place.files)
        used = set()
        for picture in place.pictures:
            caption = ""
            blank = False
            for file in by_name.captions_of(picture):
                used.add(file)
                try:
                    caption = caption or caption_in(file)
                except ValueError as error:
                    wrong.append(str(error))
                blank = True
            uncaptioned += not caption
            empty += blank and not caption
            caption = caption or default_caption.strip() or named(picture)
            literal += [caption] if means_more(caption) else []
            photos.append(Photo(picture, caption, place.pictures[picture]))
        rest = (file for file in place.files if file not in used and file.name.lower() not in OF_SYSTEMS)
        unread.update(readable(file.suffix.lower()) or "without suffix" for file in rest)
    if wrong:
        raise ValueError(wrong[0] + (f" {len(wrong) - 1} more captions can't be read." if len(wrong) > 1 else ""))
    if not photos:
        raise ValueError(f"There is no picture in {folder}: put some there ({', '.join(SUFFIXES)}).")
    photos.sort(key=lambda photo: photo.file)
    return Found(photos, uncaptioned, empty, +unread, repeats, literal)


def means_more(caption: str) -> bool:
    """Whether it would be more than its words, or refused, as a line of prompts."""
    try:
        return parse(caption) != [caption]
    except ValueError:
        return True


def holds_a_picture(folder: Path) -> bool:
    """Whether there is one, so far as names tell."""
    return any(place.pictures for place in walk(folder))


@dataclass(frozen=True)
class Place:
    """A folder's own files that are not hidden: pictures, with why they can't be used, and others.

    links: how many others are links out of the folder of photos, or folders.
    """

    folder: Path
    pictures: dict[Path, str]
    files: list[Path]
    links: int


def walk(folder: Path) -> Iterator[Place]:
    """The folder and those inside it that are not hidden; links to folders are not followed."""
    root = folder.resolve()
    for name, folders, names in os.walk(folder):
        place = Path(name)
        pictures = {}
        files = []
        if not place.resolve().is_relative_to(root):  # Windows has links that os.walk follows
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = sum((place / name).is_symlink() for name in folders)
        for file in (place / name for name in sorted(names) if not name.startswith(".")):
            leads = where_it_leads(file, root)
            if file.suffix.lower() in SUFFIXES:
                pictures[file] = leads
            elif leads:
                links += 1
            else:
                files.append(file)
        yield Place(place, pictures, files, links)


def where_it_leads(file: Path, root: Path) -> str:
    """Why what a name stands for is not read, which reads on from the name; empty for a file in the folder `root`."""
    if file.is_symlink():
        if not file.exists():
            return "is a link to nowhere"
        if not file.resolve().is_relative_to(root):
            return "is a link out of the folder: copy the picture there"
    return "" if file.is_file() else "is no file"


class Names:
    """Files of one folder by their names."""

    def __init__(self, files: list[Path]):
        self.exact = {file.name: file for file in files if file.suffix.lower() in CAPTIONS}
        self.alike = {alike(name): file for name, file in self.exact.items()}

    def captions_of(self, picture: Path) -> list[Path]:
        """Those that may hold its caption, the nearest name first."""
        names = [stem + suffix for suffix in CAPTIONS for stem in (picture.name, picture.stem)]
        found = (self.exact.get(name) or self.alike.get(alike(name)) for name in names)
        return list(dict.fromkeys(file for file in found if file))


def alike(name: str) -> str:
    """The same for names that differ in capitals alone, or in how a system writes accents."""
    return unicodedata.normalize("NFC", name).casefold()


def caption_in(file: Path) -> str:
    """One line. Raises ValueError for a file that is not UTF-8 or too long."""
    if file.stat().st_size > LONGEST_CAPTION:
        raise ValueError(f"The caption {readable(file)} has {file.stat().st_size:,} bytes: write a shorter one.")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16, too, where all letters are English
        raise ValueError(f"The caption {readable(file)} is not UTF-8: save it as UTF-8.")
    caption = " ".join(text.split())
    try:
        check_prompt(caption)
    except ValueError as error:
        raise ValueError(f"The caption {readable(file)} can't be used: {error}") from None
    return caption


def named(picture: Path) -> str:
    """What a picture's name says."""
    return " ".join(readable(picture.stem).replace("_", " ").replace("-", " ").split())


def readable(name: str | Path) -> str:
    """A file's name as text that can be written: names from other systems' archives need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def sizes_of_area(width: int, height: int, multiple: int) -> list[Size]:
    """Sizes of about width x height pixels, one for each shape, with sides that are multiples of `multiple`.

    From 1:2 to 2:1, or to the shape that is asked for, where that is longer.
    """
    area = width * height
    longest = max(LONGEST, max(width, height) / min(width, height))
    sides = range(multiple, math.ceil(math.sqrt(area * longest)) + multiple, multiple)
    found = {(side, max(1, round(area / side / multiple)) * multiple) for side in sides}
    found |= {(b, a) for a, b in found}
    return sorted(size for size in found if max(size) / min(size) <= longest)


def nearest_shape(size: Size, sizes: list[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to that of `size`."""
    return min(sizes, key=lambda other: abs(math.log(other[0] * size[1] / (other[1] * size[0]))))


def upright_size(file: Path) -> Size:
    """Of the picture as it is looked at. Reads the header alone. Raises Unusable for what is no picture."""
    with opened(file) as image:
        size = image.size
        if image.format == "TIFF":  # Pillow may have turned it already
            size = (image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT])
        exif = Image.Image.getexif(image)  # a PNG's own decodes it all to look behind its pixels, too
        return size[::-1] if exif.get(ORIENTATION) in SIDEWAYS else size


def cropped(file: Path, size: Size) -> Tensor:
    """(1, 3, H, W) in [0, 1]: turned upright, made smaller until it just covers `size`, its middle cut out.

    Of an animation, or of several pages, the first; what is transparent lies on white. Raises Unusable for a broken
    picture.
    """
    with opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.array(ImageOps.fit(as_rgb(image), size, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def as_rgb(image: Image.Image) -> Image.Image:
    """In 8 bits, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        return from_16_bits(image)
    if image.mode == "F":
        raise Unusable("has numbers in floating point for pixels: save it with 8 or 16 bits")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        return on_white(image)
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, while Pillow reads the pixels in 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image.convert("I"))
    if values.max() > 65535 or values.min() < 0:
        raise Unusable("has more than 16 bits in a pixel: save it with 8 or 16")
    grey = np.round(values / np.float32(257)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def known_formats(file: Path) -> list[str]:
    """Those of FORMATS that this Pillow reads: AVIF if it was built with it, HEIF with a plug-in that is installed."""
    Image.init()
    if file.suffix.lower() in OF_PLUG_IN and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture, not yet decoded; what goes wrong inside is Unusable, as is a picture of too many pixels."""
    formats = known_formats(file)
    try:
        with Image.open(file, formats=formats) as image:
            check_pixels(image.size)
            yield image
    except Unusable:
        raise
    except UnidentifiedImageError:
        raise Unusable(f"is no picture of these kinds: {', '.join(formats)}; save it as one of them") from None
    except Image.DecompressionBombError:
        raise Unusable("has more than 178 megapixels: make it smaller first") from None
    except Exception as error:  # Pillow has a dozen kinds for broken files
        raise Unusable(f"can't be read ({error})") from error


def check_pixels(size: Size):
    """Raises Unusable for more than MOST_PIXELS, which a file of a few kB may ask for and take gigabytes to decode."""
    if math.prod(size) > MOST_PIXELS:
        raise Unusable(
            f"is {size[0]}x{size[1]}: more than {MOST_PIXELS // 10**6} megapixels take too much memory; make it "
            "smaller first"
        )


def check_covers(size: Size, wanted: Size):
    """Raises Unusable if a picture of `size` would have to be enlarged."""
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise Unusable(f"is {size[0]}x{size[1]}, too small for {wanted[0]}x{wanted[1]}, the size of its shape")
