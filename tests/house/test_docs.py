"""The documents keep up with the code."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

from shelflife.cli import parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    [action] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(action.choices)


def test_every_command_is_in_the_changelog_and_does_something() -> None:
    from shelflife.cli import _MODULES

    text = (ROOT / "CHANGELOG.md").read_text()
    for command in commands():
        assert f"`{command}`" in text
        module = import_module(_MODULES.get(command, "shelflife.command_line"))
        assert callable(getattr(module, f"do_{command}"))


def test_the_readmes_commands_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_and_pictures_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_the_map_names_every_folder() -> None:
    for folder in ("core", "monitor", "registry", "retrain", "serving", "dashboard", "shelflife"):
        assert f"[{folder}/]" in README


def test_the_data_is_credited_where_it_is_shown() -> None:
    from shelflife.demo import story

    for text in (README, story.ABOUT, (ROOT / "data" / "README.md").read_text()):
        assert "CC BY 4.0" in text
    assert "keep growing" in README
