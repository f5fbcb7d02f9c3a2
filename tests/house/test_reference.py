"""Every setting, command, metric and route has its heading; the pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(reference: Any) -> dict[str, str]:
    found: dict[str, str] = reference.pages()
    return found


def test_the_pages_are_what_the_code_says(made: dict[str, str]) -> None:
    folder = ROOT / "docs" / "reference"
    old = [
        name
        for name, text in made.items()
        if not (folder / name).exists() or (folder / name).read_text() != text
    ]
    assert old == [], "run `make reference`"


def headings(text: str) -> set[str]:
    return set(re.findall(r"^#+ (?:Section )?`([^`]+)`$", text, re.MULTILINE))


def keys(struct: Any, path: str = "") -> set[str]:
    """Every key, found without the generator: by looking into a settings value."""
    found = set[str]()
    for field in msgspec.structs.fields(struct):
        inner = getattr(struct(), field.name)
        if isinstance(inner, msgspec.Struct):
            found |= keys(type(inner), f"{path}{field.encode_name}.")
        else:
            found.add(f"{path}{field.encode_name}")
    return found


def test_every_setting_has_its_heading(made: dict[str, str]) -> None:
    from core.settings import Settings

    wanted = keys(Settings)
    assert len(wanted) > 60
    assert wanted - headings(made["settings.md"]) == set()


def test_every_command_metric_and_route_has_its_heading(made: dict[str, str]) -> None:
    from shelflife.metrics import described
    from shelflife.web.openapi import document

    commands = headings(made["commands.md"])
    assert {"shelflife check", "shelflife backtest", "shelflife log forget"} <= commands
    assert set(described()) <= headings(made["metrics.md"])
    routes = headings(made["api.md"])
    for path, operations in document()["paths"].items():
        for method in {"get", "post", "put", "delete"} & set(operations):
            assert f"{method.upper()} {path}" in routes


def test_a_setting_without_its_text_is_noticed(reference: Any) -> None:
    class Bare(msgspec.Struct):
        """A section."""

        said: int = 1
        """What it means."""
        unsaid: int = 2

    reference._texts = lambda struct: {"said": "What it means."}
    with pytest.raises(ValueError, match="unsaid"):
        list(reference._section(Bare, ""))
