"""What people read of a run, in their language. It is written in English where it is said, and looked up from there."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Translations = Callable[[], Mapping[str, str]]  # gives for an English template that of the language

_translations: Translations = dict


def use(translations: Translations):
    """From now on sentences are looked up in what this gives, which is asked for each: the language may change."""
    global _translations
    _translations = translations


@contextmanager
def in_english() -> Iterator[None]:
    """Meanwhile everything is said in English."""
    before = _translations
    use(dict)
    try:
        yield
    finally:
        use(before)


def say(english: str, /, **values: Any) -> str:
    """The sentence in the language that is in use, or in English where that has no such template.

    english: a template of `str.format` with named fields. values: what is put there; braces in them are braces.
    """
    return _translations().get(english, english).format(**values)


def say_many(count: int, one: str, more: str, /, **values: Any) -> str:
    """The sentence of the template `one` where `count` is 1, else of `more`; {count} in them is the number."""
    return say(one if count == 1 else more, count=count, **values)


def names(*english: str) -> tuple[str, ...]:
    """Names without fields that the languages have, too, for `called`."""
    return english


def called(name: str, known: Collection[str]) -> str:
    """What this is called in the language that is in use, if it is one of these `names`; any other is left as it is."""
    return say(name) if name in known else name


def plural(count: int, noun: str) -> str:
    """The count with its noun, in English alone, as what is drawn into pictures; for sentences there is `say_many`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
