"""The reference pages, written from the code that they describe: docs/reference/*.md.

    python docs/reference.py [--check]

Settings from the structs of `core.settings` and the texts below their fields, commands from the
command line's own parser, metrics from what `/metrics` renders, routes from the OpenAPI document.
With `--check` nothing is written and the exit status is 1 if a page is not what it would write.
`tests/house` does the same.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).resolve().parent / "reference"
_HEAD = "<!-- Written by docs/reference.py from the code; `make reference` writes it anew. -->\n\n"
Struct = type[msgspec.Struct]


def pages() -> dict[str, str]:
    """Every page's text by its file's name."""
    made = {
        "settings.md": settings(),
        "commands.md": commands(),
        "metrics.md": metrics(),
        "api.md": api(),
    }
    return {name: _HEAD + text.rstrip() + "\n" for name, text in made.items()}


# --- settings ------------------------------------------------------------------------------------


def settings() -> str:
    """A heading for every key, under a heading for every section."""
    from core.settings import Settings

    lines = [
        "# Settings",
        "",
        "One YAML file, `shelflife.yaml`; `shelflife init` writes one with comments. Every key is",
        "optional. Durations are written 90s, 30m, 12h, 7d or 4w. A secret never stands in the",
        "file: name an environment variable (`env:NAME`) or a file (`file:/path`).",
        "",
    ]
    return "\n".join([*lines, *_section(Settings, "")])


def _section(struct: Struct, path: str, above: tuple[Struct, ...] = ()) -> Iterator[str]:
    """The struct's own keys, then its sections; one that holds its own kind is told once."""
    texts, hints = _texts(struct), typing.get_type_hints(struct, include_extras=True)
    inner: list[tuple[str, Struct]] = []
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        name = f"{path}{field.encode_name}"
        found = _struct_of(kind)
        if found is not None and found not in above:
            inner.append((name + _key_of(kind), found))
            if not _key_of(kind):
                continue
        if not texts.get(field.name):
            raise ValueError(f"{struct.__module__}: say below {field.name} what `{name}` means")
        yield from (f"### `{name}`", "", texts[field.name], "")
        yield from (_sentence(f"{_kind(kind)}; {_default(field)}"), "")
    for name, each in inner:
        yield from (f"## Section `{name}`", "")
        if each.__doc__:
            yield from (inspect.cleandoc(each.__doc__), "")
        if name.startswith("models."):
            yield from ("The same keys as [`defaults`](#section-defaults), for one model.", "")
        else:
            yield from _section(each, f"{name}.", (*above, each))


def _texts(struct: Struct) -> dict[str, str]:
    """The string below each field, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if base is not msgspec.Struct and issubclass(base, msgspec.Struct):
            found |= _own_texts(base)
    return found


def _own_texts(struct: Struct) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    found: dict[str, str] = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[typing.cast(ast.Name, field.target).id] = " ".join(value.value.split())
    return found


def _struct_of(kind: Any) -> Struct | None:
    """The struct that a key holds, alone, in a list, by name, or as an option."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for argument in typing.get_args(kind):
        found = _struct_of(argument)
        if found is not None:
            return found
    return None


def _key_of(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is dict or (isinstance(origin, type) and issubclass(origin, typing.Mapping)):  # type: ignore[arg-type]
        return ".NAME"
    return "[]" if origin in (tuple, list) else ""


def _kind(kind: Any) -> str:
    """What may stand there, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        limits = [text for meta in arguments[1:] if (text := _limits(meta))]
        return " ".join([_kind(arguments[0]), *limits])
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{_shown(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(each) for each in arguments if each is not type(None))
    if origin in (tuple, list):
        return f"list of: {_kind(arguments[0])}"
    if origin is not None:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(
        kind, "any"
    )


def _limits(meta: Any) -> str:
    if not isinstance(meta, msgspec.Meta):
        return ""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{word} {getattr(meta, name):g}"
        for name, word in words.items()
        if getattr(meta, name) is not None
    ]
    found += [meta.description] if meta.description else []
    return ", ".join(found)


def _default(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        return f"default `{_shown(field.default)}`" if field.default is not None else "not set"
    if field.default_factory is not msgspec.NODEFAULT:
        made = field.default_factory()
        return "as below" if isinstance(made, msgspec.Struct) else f"default `{_shown(made)}`"
    return "required"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_shown(each) for each in value) + "]"
    if isinstance(value, str):
        return value or '""'
    return str(value)


# --- commands ------------------------------------------------------------------------------------


def commands() -> str:
    """A heading for every command, with its options."""
    from shelflife import cli

    lines = ["# Commands", "", *_paragraphs(cli.__doc__ or ""), ""]
    for name, parser in _commands(cli.parser()):
        lines += [f"## `shelflife {name}`", "", _sentence(parser.description or ""), ""]
        lines += [*_options(parser), ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, Any]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield f"{path}{name}", each
                yield from _commands(each, f"{path}{name} ")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        if action.help == argparse.SUPPRESS:
            continue
        shown = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        shown = " ".join(shown) if isinstance(shown, tuple) else str(shown)
        takes = action.nargs != 0
        if action.option_strings:
            name = ", ".join(action.option_strings) + (
                f" {shown or action.dest.upper()}" if takes else ""
            )
        else:
            name = shown or action.dest
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        rows.append(
            f"| `{name.replace('|', chr(92) + '|')}` | {text.replace('|', chr(92) + '|')} |"
        )
    return ["| | |", "|---|---|", *rows] if rows else []


# --- metrics and routes --------------------------------------------------------------------------


def metrics() -> str:
    """A heading for every metric of `/metrics`."""
    from shelflife.metrics import described

    lines = ["# Metrics", "", "What `GET /metrics` shows Prometheus.", ""]
    for name, (kind, text) in described().items():
        lines += [f"## `{name}`", "", f"{kind.capitalize()}. {text}", ""]
    return "\n".join(lines)


def api() -> str:
    """A heading for every route."""
    from shelflife.web.openapi import document

    lines = [
        "# API",
        "",
        "The server describes itself: `GET /openapi.json`. Every refusal has the body",
        '`{"error": text, "field": …, "value": …, "expected": …}`.',
        "",
    ]
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            if not isinstance(operation, dict) or "responses" not in operation:
                continue
            lines += [f"## `{method.upper()} {path}`", "", _sentence(operation["summary"]), ""]
            if text := operation.get("description"):
                lines += [*_paragraphs(text), ""]
            rows = [
                f"| {status} | {_first(answer)} |"
                for status, answer in operation["responses"].items()
            ]
            lines += ["| status | when |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _first(answer: dict[str, Any]) -> str:
    return " ".join(str(answer.get("description", "")).split()).replace("|", "\\|")


def _paragraphs(text: str) -> list[str]:
    return inspect.cleandoc(text).splitlines()


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is old")
    given = parser.parse_args()
    old = []
    for name, text in pages().items():
        path = FOLDER / name
        if given.check:
            old += [name] if not path.exists() or path.read_text() != text else []
        else:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text)
    for name in old:
        print(f"docs/reference/{name} is not what the code says: make reference", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
