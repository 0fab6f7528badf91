"""Prompts from text: one per line, comments, and wildcards such as {a|b}."""

import codecs
import random
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import NamedTuple

LIMIT = 64  # prompts that one line with wildcards gives at most
LONGEST = 10_000  # characters of a prompt, and of a line: text encoders read some hundred words
DEEPEST = 20  # brackets inside each other: the host's reader of weights and ours of wildcards go down one by one
MOST = 500_000  # prompts of one text
MOST_CHOSEN = 1_000_000  # choices made to write the prompts of all lines with wildcards: a few seconds
MOST_WILD = 3_000_000  # characters of all lines with wildcards: some seconds to read
LARGEST = 200_000_000  # bytes of a file
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# What a line is parsed to: texts and choices in a row.
Row = list  # of str | Choice


class Choice(NamedTuple):
    """alternatives: rows of which one is taken. ends: of each, the combinations that it and those before it have."""

    alternatives: list[Row]
    ends: list[int]


# A backslash before one of these makes it text. Before ( and ) it stays: there it is for the host's text encoders.
ESCAPED = re.compile(
    r"\\(::|__|--|//|/\*|[{}|\[\]<>$#@~]|(?:AND|BREAK|ADD(?:COL|ROW|BASE|COMM))\b|(?i:negative prompt|steps):)"
)
SPECIAL = re.compile(r"[{}\\$\[<|]|::|--|__|AND|BREAK|ADD|(?i:^negative prompt|^steps:)")
COMMENT = re.compile(r"(?<!\\)/\*|(?<!\S)//")
TOKEN = re.compile(r"[{}|]|[^{}|]+")
HIDDEN = "\0"  # stands for what was escaped while a line is parsed

# What other programs read in a prompt and this one does not: trained on as text, it would spoil prompts silently.
# Lengths are bounded, so that no line takes time that grows with its square.
FOREIGN = [
    (r"\$\{", "variables such as ${name} are not known: write the words"),
    (r"\{[^{}|]{0,80}\$\$", "{2$$a|b}, several choices at once, is not known: write {a, b|a, c|b, c}"),
    (r"\{\s*[@~]", "{@a|b} and {~a|b}, other ways to choose, are not known: write {a|b}"),
    (r"::", "weights such as 0.7::a are not known: write {a|a|b} for a choice that comes more often, and plain words"),
    (
        r"__[!~@]?(?=[^\W_]|\*)[\w\-/*. ]{0,100}?(?:\([^()]{0,100}\))?__",
        "files of wildcards such as __name__ are not read: write {a|b}",
    ),
    (
        r"<\s*[A-Za-z]\w{0,40}\s*:[^<>]{0,200}>",
        "tags such as <lora:name:1> are not read: load a LoRA with a node, and take the tag away",
    ),
    (r"\[\[", "lists such as [[a, b]] are not known: write {a|b}"),
    (r"\[[^\[\]|]{0,200}\|[^\[\]]{0,200}\]", "[a|b], a change at each step, is not known: for a choice write {a|b}"),
    (
        r"\[[^\[\]]{0,200}:\s{0,9}\d{0,9}\.?\d{1,9}\s{0,9}\]",
        "[a:b:0.5], a change midway, is not known: write one of them",
    ),
    (r"^[^{}]{0,200}\|\||\|\|[^{}]{0,200}$", "||a|b|| is not known: write {a|b}"),
    (
        r"(?<!\S)--[A-Za-z]\w{0,40}",
        "options such as --w 512 or --ar 16:9 are not read: take them away; size, steps and seed are set on the nodes",
    ),
    (r"^(?i:negative prompt ?:)", "negative prompts are not trained on: take the line away"),
    (r"^(?i:steps:) ?\d{1,9},", "settings of a picture are no prompt: take the line away"),
]
ANY_FOREIGN = re.compile("|".join(f"(?:{pattern})" for pattern, _ in FOREIGN))
IN_CAPITALS = re.compile(r"(?<!\w)(?:AND|BREAK|ADD(?:COL|ROW|BASE|COMM))(?!\w)")  # where a line is not all in capitals
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
    chosen = drawn = wild = 0
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
    kept = []
    start = 0
    while True:
        if inside:
            end = line.find("*/", start)
            if end < 0:
                return "".join(kept), True
            start = end + 2
            inside = False
        found = COMMENT.search(line, start)
        kept.append(line[start : found.start() if found else None])
        if found is None or found[0] == "//":
            return "".join(kept), False
        start = found.end()
        inside = True


def expand(line: str) -> list[str]:
    r"""The prompts that a line stands for.

    {a|b|c} is one of a, b and c; alternatives may be empty and may hold wildcards. \{, \} and \| are the characters
    themselves. Up to LIMIT combinations are all given, the last choice changing first. Of more, LIMIT are drawn, each
    equally likely and none twice; the draw is seeded with the line, so the same line always gives the same prompts.
    Runs of spaces that a choice leaves become one. Raises ValueError as `parse` does.
    """
    return combine(line, parse(line))


def combine(line: str, row: Row) -> list[str]:
    """The prompts of a line's row; see `expand`."""
    if all(isinstance(part, str) for part in row):
        return ["".join(row)]
    count = combinations(row)
    chosen = range(count) if count <= LIMIT else draw(line, count)
    prompts = [" ".join(combination(row, number).split()) for number in chosen]
    return [prompt for prompt in dict.fromkeys(prompts) if prompt]


def check_prompt(prompt: str):
    """Raises ValueError for a prompt that no text encoder can be given; reads on from what it is."""
    if len(prompt) > LONGEST:
        raise ValueError(f"it has {len(prompt):,} characters, {LONGEST:,} are the most. Write shorter ones.")
    if prompt.count("(") > DEEPEST and depth(prompt, "(", ")") > DEEPEST:
        raise ValueError(rf"more than {DEEPEST} ( inside each other. Close them, or write \( for the character itself.")
    if "\0" in prompt:
        raise ValueError("it holds a character of the number zero, which is no text. Take it away.")
    if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("it holds half of a character, which is no text. Type it anew.")


def depth(text: str, opening: str, closing: str) -> int:
    """How many brackets stand inside each other at most."""
    now = most = 0
    for character in text:
        now = now + (character == opening) - (character == closing and now > 0)
        most = max(most, now)
    return most


def parse(line: str) -> Row:
    r"""The line as a row of texts and choices.

    Raises ValueError for braces that don't pair, hold one choice or stand too deep inside each other, for what other
    programs read in a prompt (see FOREIGN), and as `check_prompt` does.
    """
    check_prompt(line)
    if not SPECIAL.search(line):
        return [line]
    escaped: list[str] = []
    hidden = ESCAPED.sub(lambda found: escaped.append(found[1]) or HIDDEN, line) if "\\" in line else line
    check_foreign(hidden)
    texts = iter(escaped)
    open_choices: list[list[Row]] = [[[]]]  # the outermost is no choice: the line itself
    for token in TOKEN.findall(hidden):
        if token == "{":
            if len(open_choices) > DEEPEST:
                raise ValueError(rf"more than {DEEPEST} {{ inside each other. Write \{{ for the character itself.")
            open_choices.append([[]])
        elif token == "}":
            close(open_choices)
        elif token == "|" and len(open_choices) > 1:
            open_choices[-1].append([])
        else:
            open_choices[-1][-1].append(re.sub(HIDDEN, lambda _: next(texts), token) if escaped else token)
    if len(open_choices) > 1:
        raise ValueError(r"a { has no }. Close it, or write \{ for the character itself.")
    return open_choices[0][0]


def check_foreign(line: str):
    """Raises ValueError for what other programs read in a prompt; reads on from the line's number."""
    if ANY_FOREIGN.search(line):
        pattern, advice = next((pattern, advice) for pattern, advice in FOREIGN if re.search(pattern, line))
        raise ValueError(rf'"{re.search(pattern, line)[0]}": {advice}, or put a \ before it if it is text.')
    if (re.search("[a-z]", line) or IN_CAPITALS.fullmatch(line)) and (found := IN_CAPITALS.search(line)):
        raise ValueError(
            rf'"{found[0]}": prompts are not joined or broken by words in capitals: write it small, or put a \ before '
            "it if it is text."
        )


def close(open_choices: list[list[Row]]):
    """Make the innermost open choice a part of the row that it stands in."""
    alternatives = open_choices.pop()
    if not open_choices:
        raise ValueError(r"a } has no {. Open it, or write \} for the character itself.")
    if len(alternatives) == 1:
        raise ValueError(r"{...} with one choice. Separate choices by |, or write \{ and \} for the characters.")
    ends = list(accumulate(map(combinations, alternatives)))
    open_choices[-1][-1].append(Choice(alternatives, ends))


def combinations(row: Row) -> int:
    """How many combinations a row has."""
    return prod(part.ends[-1] for part in row if isinstance(part, Choice))


def choices(row: Row) -> int:
    """How many choices a row holds, those inside others too."""
    inside = [part for part in row if isinstance(part, Choice)]
    return len(inside) + sum(choices(other) for part in inside for other in part.alternatives)


def combination(row: Row, number: int) -> str:
    """Combination `number`, in [0, combinations(row)): the digits of a number whose last digit is the last choice."""
    texts = []
    for part in reversed(row):
        if isinstance(part, str):
            texts.append(part)
        else:
            number, digit = divmod(number, part.ends[-1])
            texts.append(alternative(part, digit))
    return "".join(reversed(texts))


def alternative(choice: Choice, number: int) -> str:
    """Combination `number` of all that the alternatives have, one alternative after the other."""
    which = bisect_right(choice.ends, number)
    return combination(choice.alternatives[which], number - (choice.ends[which - 1] if which else 0))


def draw(line: str, count: int) -> list[int]:
    """LIMIT different numbers in [0, count), ascending; `count` may be too large for random.sample."""
    source = random.Random(line)
    drawn = set()
    while len(drawn) < LIMIT:
        drawn.add(source.randrange(count))
    return sorted(drawn)
