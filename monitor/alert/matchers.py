"""Matchers on labels, in the notation of Prometheus: `severity="page"`, `owner=~"crm|sales"`.

Operators: `=`, `!=`, `=~` (the whole value matches the pattern) and `!~`. A label that is not there
is the empty string, as in Alertmanager. Patterns also come from callers of the API, and Python's
`re` backtracks, so they are kept to what cannot run away: no quantified groups, no references, at
most three of `*`, `+` and `{}` (cubic in a value of at most 128 characters).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from msgspec import Struct

from core.errors import InputError

Labels = Mapping[str, str]
Operator = Literal["=", "!=", "=~", "!~"]
_FORM = re.compile(r'^\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|[^"\s]*)\s*$')
_LONGEST = 256
_EXPECTED = 'name="value", with =, !=, =~ or !~'


class Matcher(Struct, frozen=True):
    """One condition on one label."""

    name: str
    operator: Operator
    value: str

    def holds(self, labels: Labels) -> bool:
        """Whether the labels fulfil it."""
        value = labels.get(self.name, "")[:128]
        if self.operator in ("=", "!="):
            return (value == self.value) == (self.operator == "=")
        return bool(re.fullmatch(self.value, value)) == (self.operator == "=~")

    def __str__(self) -> str:
        value = self.value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{self.name}{self.operator}"{value}"'


@lru_cache(maxsize=4096)
def parse(text: str, field: str = "matcher") -> Matcher:
    """A matcher from its text.

    Raises:
        InputError: it is no matcher, or its pattern none that may be used.
    """
    found = _FORM.match(text) if len(text) <= _LONGEST else None
    if found is None:
        raise InputError(field, text, _EXPECTED)
    name, operator, value = found.groups()
    if value.startswith('"'):
        value = re.sub(r"\\(.)", lambda escaped: _unescaped(escaped[1]), value[1:-1])
    if operator in ("=~", "!~"):
        _check_pattern(value, field)
    return Matcher(name, operator, value)  # type: ignore[arg-type]


def parse_all(texts: Iterable[str], field: str = "match") -> tuple[Matcher, ...]:
    """Several of them; see `parse`."""
    return tuple(parse(text, field) for text in texts)


def all_hold(matchers: Iterable[Matcher], labels: Labels) -> bool:
    """Whether the labels fulfil every one; of none, they do."""
    return all(matcher.holds(labels) for matcher in matchers)


def _unescaped(character: str) -> str:
    return character if character in ('"', "\\") else "\\" + character


def _check_pattern(pattern: str, field: str) -> None:
    plain = re.sub(r"\\.", "x", pattern)  # what is escaped stands for one character
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    runaway = (
        re.search(r"\)[*+{?]|\(\?", bare)
        or re.search(r"\\[0-9]", pattern)
        or len(re.findall(r"[*+{]", bare)) > 3
    )
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(field, pattern, f"a regular expression ({error})") from None
    if runaway:
        expected = "a pattern without quantified groups or references, with three of * + {} at most"
        raise InputError(field, pattern, expected)
