"""The measured interpreters of a version as rows of a table (`serving.choice`)."""

from __future__ import annotations

from pathlib import Path

from core.spec import NAME
from dashboard import words
from serving import choice
from serving.choice import Candidate

_STATUS = {
    "chosen": "✓ chosen",
    "passed": "○ passed",
    "refused": "✗ refused",
    "not_applicable": "– does not apply",
}


def rows(home: Path | None, model: str, version: str) -> list[dict[str, str]]:
    """One row a candidate, the chosen one first; none where nothing was measured."""
    if home is None or not NAME.match(model) or not NAME.match(version):
        return []
    found = choice.read(home, model, version)
    if found is None:
        return []
    ordered = sorted(found.candidates, key=lambda each: list(_STATUS).index(each.status))
    return [_line(each) for each in ordered]


def _line(each: Candidate) -> dict[str, str]:
    one, many = each.timing(1), each.timing(1024)
    return {
        "interpreter": words.clean(each.name, most=40),
        "": _STATUS.get(each.status, each.status),
        "device": words.clean(each.device, most=20),
        "agrees within": words.number(each.difference),
        "p99 at 1 row": f"{words.number(one.p99_ms)} ms" if one else words.MISSING,
        "rows/s at 1,024": words.number(many.rows_per_s) if many else words.MISSING,
        "memory": f"{words.number(each.bytes / 1e6)} MB" if each.bytes else words.MISSING,
        "why": words.clean(each.reason, most=160),
    }
