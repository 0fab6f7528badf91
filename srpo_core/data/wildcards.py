"""Choices inside a line of prompts, such as {a|b}: how they are read, refused and combined."""

import random
import re
from bisect import bisect_right
from itertools import accumulate
from math import prod
from typing import NamedTuple, TypeAlias

LIMIT = 64  # prompts that one line with wildcards gives at most
LONGEST = 10_000  # characters of a prompt, and of a line: text encoders read some hundred words
DEEPEST = 20  # brackets inside each other: the host's reader of weights and ours of wildcards go down one by one
Row: TypeAlias = "list[str | Choice]"  # what a line is parsed to: texts and choices in a row


class Choice(NamedTuple):
    """alternatives: rows of which one is taken. ends: of each, the combinations that it and those before it have."""

    alternatives: list[Row]
    ends: list[int]


# A backslash before one of these makes it text. Before ( and ) it stays: there it is for the host's text encoders.
ESCAPED = re.compile(
    r"\\(::|__|--|//|/\*|[{}|\[\]<>$#@~]|(?:AND|BREAK|ADD(?:COL|ROW|BASE|COMM))\b|(?i:negative prompt|steps):)"
)
SPECIAL = re.compile(r"[{}\\$\[<|]|::|--|__|AND|BREAK|ADD|(?i:^negative prompt|^steps:)")
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
    texts = [part for part in row if isinstance(part, str)]
    if len(texts) == len(row):
        return ["".join(texts)]
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
    now = 0
    most = 0
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

    def hide(found: re.Match) -> str:
        escaped.append(found[1])
        return HIDDEN

    hidden = ESCAPED.sub(hide, line) if "\\" in line else line
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
        found, advice = next((found, advice) for pattern, advice in FOREIGN if (found := re.search(pattern, line)))
        raise ValueError(rf'"{found[0]}": {advice}, or put a \ before it if it is text.')
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
    drawn: set[int] = set()
    while len(drawn) < LIMIT:
        drawn.add(source.randrange(count))
    return sorted(drawn)
