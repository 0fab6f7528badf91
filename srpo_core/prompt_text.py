"""Prompts from text: one per line, comments, and wildcards such as {a|b}."""

import codecs
import random
import re
from math import prod
from pathlib import Path

LIMIT = 64  # prompts that one line with wildcards gives at most
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# What a line is parsed to: texts and choices in a row. A choice is a list of alternatives, each such a row again.
Row = list  # of str | list["Row"]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file, with or without a BOM. Raises ValueError, with the file's name, as `parse_prompts`
    does and for a file in another encoding.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "it is UTF-16" if data.startswith(UTF16) else f"byte {error.start + 1} is 0x{data[error.start]:02X}"
        raise ValueError(f"{path.name} is not in UTF-8 ({found}): save it as UTF-8.") from None
    return parse_prompts(text, f" of {path.name}")


def parse_prompts(text: str, where: str = "") -> list[str]:
    """One prompt per line, in their order; blank lines and lines that begin with # are left out.

    A line with wildcards stands for all its combinations (see `expand`). where: said after a line's number in errors.
    Raises ValueError if no prompt is left, or for wildcards that can't be read, with the line's number from 1.
    """
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                prompts += expand(line)
            except ValueError as error:
                raise ValueError(f"Line {number}{where}: {error}") from None
    if not prompts:
        raise ValueError(f"There are no prompts{where and ' in the lines' + where}: write at least one, one per line.")
    return prompts


def expand(line: str) -> list[str]:
    r"""The prompts that a line stands for.

    {a|b|c} is one of a, b and c; alternatives may be empty and may hold wildcards. \{, \} and \| are the characters
    themselves. Up to LIMIT combinations are all given, the last choice changing first. Of more, LIMIT are drawn, each
    equally likely and none twice; the draw is seeded with the line, so the same line always gives the same prompts.
    Runs of spaces that a choice leaves become one. Raises ValueError for braces that don't pair or hold one choice.
    """
    row = parse(line)
    if all(isinstance(part, str) for part in row):
        return ["".join(row)]
    count = combinations(row)
    chosen = range(count) if count <= LIMIT else draw(line, count)
    prompts = [" ".join(combination(row, number).split()) for number in chosen]
    return [prompt for prompt in dict.fromkeys(prompts) if prompt]


def parse(line: str) -> Row:
    """The line as a row of texts and choices. Raises ValueError as `expand` says."""
    open_choices: list[list[Row]] = [[[]]]  # the outermost is no choice: the line itself
    for token in re.findall(r"\\[{}|]|[{}|]|[^\\{}|]+|\\", line):
        if token == "{":
            open_choices.append([[]])
        elif token == "}":
            close(open_choices)
        elif token == "|" and len(open_choices) > 1:
            open_choices[-1].append([])
        else:
            open_choices[-1][-1].append(token[-1] if token[0] == "\\" else token)
    if len(open_choices) > 1:
        raise ValueError(r"a { has no }. Close it, or write \{ for the character itself.")
    return open_choices[0][0]


def close(open_choices: list[list[Row]]):
    """Make the innermost open choice a part of the row that it stands in."""
    choice = open_choices.pop()
    if not open_choices:
        raise ValueError(r"a } has no {. Open it, or write \} for the character itself.")
    if len(choice) == 1:
        raise ValueError(r"{...} with one choice. Separate choices by |, or write \{ and \} for the characters.")
    open_choices[-1][-1].append(choice)


def combinations(row: Row) -> int:
    """How many combinations a row has."""
    return prod(1 if isinstance(part, str) else sum(map(combinations, part)) for part in row)


def combination(row: Row, number: int) -> str:
    """Combination `number`, in [0, combinations(row)): the digits of a number whose last digit is the last choice."""
    texts = []
    for part in reversed(row):
        if isinstance(part, str):
            texts.append(part)
        else:
            number, digit = divmod(number, sum(map(combinations, part)))
            texts.append(alternative(part, digit))
    return "".join(reversed(texts))


def alternative(choice: list[Row], number: int) -> str:
    """Combination `number` of all that the alternatives have, one alternative after the other."""
    for row in choice:
        if number < combinations(row):
            return combination(row, number)
        number -= combinations(row)
    raise IndexError(number)


def draw(line: str, count: int) -> list[int]:
    """LIMIT different numbers in [0, count), ascending; `count` may be too large for random.sample."""
    source, drawn = random.Random(line), set()
    while len(drawn) < LIMIT:
        drawn.add(source.randrange(count))
    return sorted(drawn)
