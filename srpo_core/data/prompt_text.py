"""Prompts from text: one per line, comments, and wildcards such as {a|b}."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from .wildcards import Choice, Row, choices, combine, parse

MOST = 500_000  # prompts of one text
MOST_CHOSEN = 1_000_000  # choices made to write the prompts of all lines with wildcards: a few seconds
MOST_WILD = 3_000_000  # characters of all lines with wildcards: some seconds to read
LARGEST = 200_000_000  # bytes of a file
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMMENT = re.compile(r"(?<!\\)/\*|(?<!\S)//")
BOM = "\ufeff"  # how a file of Windows may begin, and so a line of several that were joined


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file, with or without a BOM. Raises ValueError, with the file's name, as `parse_prompts`
    does and for a file that is too large or in another encoding.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(
            f"{path.name} has {size / 1e6:.0f} MB, {LARGEST / 1e6:.0f} MB are the most: divide it into smaller ones."
        )
    return parse_prompts(decoded(path.read_bytes(), path.name), f" of {path.name}")


def check_beginning(path: Path, most: int):
    """Raises ValueError for what `read_prompts` would find in the whole lines among the first `most` bytes.

    It makes no prompts, so it takes no longer than reading does.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        data = data[:end] if end > 0 else data[:most].decode("utf-8", "ignore").encode()
        check_prompts(decoded(data, path.name), f" of {path.name}", whole=False)
    else:
        check_prompts(decoded(data, path.name), f" of {path.name}")


def decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "it is UTF-16" if data.startswith(UTF16) else f"byte {error.start + 1} is 0x{data[error.start]:02X}"
    else:
        if "\0" not in text:
            return text
        found = "it holds bytes of zero, as UTF-16 does"
    raise ValueError(f"{name} is not in UTF-8 ({found}): save it as UTF-8.")


def parse_prompts(text: str, where: str = "") -> list[str]:
    """One prompt per line, in their order; comments (# or // lines, // after a space, /* */) and blank lines left out.

    A line with wildcards stands for all its combinations (see `expand`). where: said after a line's number in errors.
    Raises ValueError if no prompt is left, for wildcards that can't be read, for what other programs read in a prompt
    and for more than MOST prompts, MOST_CHOSEN choices or MOST_WILD characters, with the line's number from 1.
    """
    prompts: list[str] = []
    chosen = 0
    drawn = 0
    wild = 0
    for number, line, row in rows(text, where):
        made = combine(line, row)
        if any(isinstance(part, Choice) for part in row):
            chosen += len(made) * choices(row)
            drawn += len(made)
            wild += len(line)
        if chosen > MOST_CHOSEN or wild > MOST_WILD:
            raise ValueError(
                f"Line {number}{where}: up to here the lines with wildcards have {wild:,} characters and give "
                f"{drawn:,} prompts with {chosen:,} choices; {MOST_WILD:,} characters and {MOST_CHOSEN:,} choices are "
                "the most. Write fewer such lines, or fewer choices in a line."
            )
        prompts += made
        if len(prompts) > MOST:
            raise ValueError(f"Line {number}{where}: up to here there are more than {MOST:,} prompts: write fewer.")
    check_some(bool(prompts), where)
    return prompts


def check_prompts(text: str, where: str = "", whole: bool = True):
    """Raises ValueError for lines that `parse_prompts` refuses, without making the prompts.

    whole: whether it is all of the text; of a part it is no fault that there is no prompt or that a comment goes on.
    """
    found = False
    for _, _, row in rows(text, where, whole):
        found = found or any(not isinstance(part, str) or part for part in row)
    if whole:
        check_some(found, where)


def check_some(found: bool, where: str):
    if not found:
        raise ValueError(f"There are no prompts{where and ' in the lines' + where}: write at least one, one per line.")


def rows(text: str, where: str, whole: bool = True) -> Iterator[tuple[int, str, Row]]:
    """Number from 1, text and row of each line that holds a prompt, up to the first that can't be read.

    Raises ValueError afterwards if some can't; it says why the first one can't, and which others.
    """
    first = ""
    others = []
    for number, line in lines(text, where, whole):
        try:
            row = parse(line)
        except ValueError as error:
            if first:
                others.append(number)
                if len(others) > 10:
                    break
            else:
                first = f"Line {number}{where}: {error}"
            continue
        if not first:
            yield number, line, row
    if first:
        more = ", ".join(map(str, others[:10])) + (", ..." if len(others) > 10 else "")
        raise ValueError(first + (f" More lines that can't be read: {more}." if others else ""))


def lines(text: str, where: str = "", whole: bool = True) -> Iterator[tuple[int, str]]:
    """Number from 1 and text of each line without its comments, where something is left.

    Raises ValueError for a comment that is not closed, where the text is whole.
    """
    opened = 0  # the line that an open comment began in
    for number, line in enumerate(text.splitlines(), 1):
        line = line.lstrip(BOM)
        if not opened and line.lstrip().startswith("#"):
            continue
        if opened or "/" in line:
            line, goes_on = uncommented(line, bool(opened))
            opened = (opened or number) if goes_on else 0
        line = line.strip()
        if line:
            yield number, line
    if opened and whole:
        raise ValueError(rf"Line {opened}{where}: a /* has no */. Close it, or write \/* for the characters.")


def uncommented(line: str, inside: bool) -> tuple[str, bool]:
    """What is left of a line, and whether a comment goes on in the next one. inside: it begins in a comment."""
    pieces: list[str] = []
    start = 0
    while True:
        if inside:
            end = line.find("*/", start)
            if end < 0:
                return "".join(pieces), True
            start = end + 2
            inside = False
        found = COMMENT.search(line, start)
        pieces.append(line[start : found.start() if found else None])
        if found is None or found[0] == "//":
            return "".join(pieces), False
        start = found.end()
        inside = True
