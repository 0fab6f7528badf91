"""The captions of photos, each in a file beside its picture."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .wildcards import check_prompt, parse

CAPTIONS = (".txt", ".caption")  # as photo.txt or photo.jpg.txt
LONGEST_CAPTION = 100_000  # bytes of its file


def means_more(caption: str) -> bool:
    """Whether a caption would be more than its words, or refused, as a line of prompts."""
    try:
        return parse(caption) != [caption]
    except ValueError:
        return True


class CaptionFiles:
    """The files of one folder that may hold captions, by their names."""

    def __init__(self, files: Sequence[Path]):
        self.exact = {file.name: file for file in files if file.suffix.lower() in CAPTIONS}
        self.normalised = {normalised(name): file for name, file in self.exact.items()}

    def of(self, picture: Path) -> list[Path]:
        """The files that may hold this picture's caption, the nearest name first."""
        names = [stem + suffix for suffix in CAPTIONS for stem in (picture.name, picture.stem)]
        found = (self.exact.get(name) or self.normalised.get(normalised(name)) for name in names)
        return list(dict.fromkeys(file for file in found if file))


def normalised(name: str) -> str:
    """The same for names that differ in capitals alone, or in how a system writes accents."""
    return unicodedata.normalize("NFC", name).casefold()


def caption_in(file: Path) -> str:
    """The caption in a file, as one line. Raises ValueError for a file that is not UTF-8 or too long."""
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


def caption_from_name(picture: Path) -> str:
    """What a picture's name says."""
    return " ".join(readable(picture.stem).replace("_", " ").replace("-", " ").split())


def readable(name: str | Path) -> str:
    """A file's name as text that can be written: names from other systems' archives need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
