"""The words of a message: plain templates, which a user may replace by their own.

A template is text with `$name` in it (`string.Template`: no expressions, nothing to inject). Values
are single lines, cut to length and free of control characters. A line all of whose names are empty
is left out, so that a template needs no conditions. `docs/oncall.md` lists the names.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

from core.errors import SettingsError
from core.times import spell
from monitor.alert.causes import CAUSES, RESOLVED, cause

FINDING = """\
$headline
  $reason
  $costs
  $doing
  $address"""
#: What is said of a finding (opened, worse, told again, escalated), of the end, of a step on the
#: way (a run, a promotion), and of several incidents at once.
DEFAULTS = {"finding": FINDING, "resolved": FINDING, "step": FINDING, "group": FINDING}
FINDS = ("opened", "worse", "reminder", "escalated")  # events whose news is the finding itself
_SHOWN = 3  # columns named in the text
_LISTED = 5  # incidents named in the text of a group

#: Every name a template may use. The first five are ready-made lines of the others.
NAMES = (
    "headline", "reason", "costs", "doing", "address",
    "symbol", "incident", "story", "model", "version", "owner", "environment", "cause", "severity",
    "state", "status", "event", "title", "text", "news", "crossed", "columns", "since", "opened",
    "seen", "cost", "done", "next", "count", "dashboard", "mlflow", "runbook", "silence", "command",
)  # fmt: skip


def check(templates: Mapping[str, str]) -> None:
    """Refuse templates that could not be filled in.

    Raises:
        SettingsError: of no kind of message, with an unknown `$name`, or a file that is not there.
    """
    kinds = (*DEFAULTS, *CAUSES)
    for kind in templates:
        where = f"alerts.templates.{kind}"
        if kind not in kinds:
            near = difflib.get_close_matches(kind, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(where, kind, f"one of {', '.join(kinds)}{hint}")
        template = Template(_source(templates, kind))
        if not template.is_valid():
            raise SettingsError(where, template.template, "text with $name; $$ is a dollar sign")
        for name in template.get_identifiers():
            if name not in NAMES:
                raise SettingsError(where, f"${name}", f"one of {', '.join(NAMES)}")


def render(data: Mapping[str, Any], at: datetime, templates: Mapping[str, str]) -> str:
    """What on-call reads.

    Args:
        data: the `data` of a body.
        templates: the user's, by cause or kind.
    """
    if len(data["incidents"]) > 1:
        kind = "group"
    elif data["event"] in FINDS:
        kind = "finding"
    else:
        kind = "resolved" if data["event"] == "resolved" else "step"
    own = kind == "finding" and data["cause"] in templates
    source = _source(templates, data["cause"] if own else kind)
    values = _values(data, at)
    lines = []
    for line in source.splitlines():
        template = Template(line)
        names = template.get_identifiers()
        if not names or any(values.get(name) for name in names):
            lines.append(template.safe_substitute(values).rstrip())
    return "\n".join(lines)


def _source(templates: Mapping[str, str], kind: str) -> str:
    text = templates.get(kind) or DEFAULTS.get(kind, FINDING)
    if not text.startswith("file:"):
        return text
    path = Path(text.removeprefix("file:"))
    if not path.is_file():
        raise SettingsError(f"alerts.templates.{kind}", str(path), "a readable file")
    return path.read_text()


def _values(data: Mapping[str, Any], at: datetime) -> dict[str, str]:
    """Every name of a template as text."""
    grouped = len(data["incidents"]) > 1
    # Drift beside decay is a coincidence until somebody shows that it carries the loss.
    named = "drifted meanwhile: " if data["cause"] == "decay" else "columns "
    cost = "" if data["cost"].startswith("cost") else "cost "
    plain = {name: str(data[name]) for name in NAMES if isinstance(data.get(name), str | int)}
    links = {name: data["links"].get(name, "") for name in ("dashboard", "mlflow", "runbook")}
    made = {
        "headline": _group_headline(data) if grouped else _headline(data, at),
        "reason": _group_reason(data) if grouped else _reason(data, at),
        "costs": _joined(_labelled(cost, data["cost"]), _labelled(named, _columns(data))),
        "doing": _joined(
            _labelled("done: ", data["done"]), _labelled("next: ", "; ".join(data["next"]))
        ),
        "address": _address(data),
        "symbol": RESOLVED if data["status"] == "resolved" else cause(data["cause"]).symbol,
        "crossed": crossed_line(data),
        "columns": _columns(data),
        "next": "; ".join(data["next"]),
        "count": str(len(data["incidents"])),
        "silence": data["links"].get("silence", ""),
    }
    return {**plain, **links, **made}


def crossed_line(data: Mapping[str, Any]) -> str:
    """The gravest number over its line: `0.213 [0.205, 0.221] over 0.190 by 0.023 (12 %)`."""
    if not data["crossed"]:
        return ""
    one = data["crossed"][0]
    band = "" if one["low"] is None else f" [{one['low']:.3g}, {one['high']:.3g}]"
    share = f" ({100 * one['over'] / one['line']:.0f} %)" if one["line"] > 0 else ""
    return (
        f"{one['what']} {one['value']:.3g}{band} over {one['line']:.3g} "
        f"by {one['over']:.3g}{share}, n {one['n']:,}"
    )


def _headline(data: Mapping[str, Any], at: datetime) -> str:
    known, title = cause(data["cause"]), data["title"]
    model = data["model"] or "this installation"
    if data["event"] == "resolved":
        return f"{RESOLVED} {model} {known.over}: {data['news'] or 'resolved'}"
    if data["event"] in FINDS:
        since = datetime.fromisoformat(data["since"])
        tail = "" if "since" in title else f", since {_day(since, at)}"
        # A title that names the model is a sentence of its own.
        named = title.startswith((f"{model} ", f"{model}:"))
        start = "" if named else f"{model} {known.says}: "
        again = f" (found by {_checks(data['seen'])})" if data["event"] == "reminder" else ""
        up = "nobody has acknowledged: " if data["event"] == "escalated" else ""
        return f"{known.symbol} {up}{start}{title}{tail}{again}"
    return f"{known.symbol} {model}: {data['news']}"


def _reason(data: Mapping[str, Any], at: datetime) -> str:
    if data["event"] == "resolved":
        lasted = spell(at - datetime.fromisoformat(data["opened"]))
        return f"it was: {data['title']}, open for {lasted}, found by {_checks(data['seen'])}"
    if data["event"] not in FINDS:
        return f"the incident: {data['title']}"
    told = "" if data["text"] == data["title"] else str(data["text"])
    return "; ".join(part for part in (told, _labelled("that is ", _over(data))) if part)


def _over(data: Mapping[str, Any]) -> str:
    if not data["crossed"]:
        return ""
    one = data["crossed"][0]
    share = f" ({100 * one['over'] / one['line']:.0f} %)" if one["line"] > 0 else ""
    return f"{one['over']:.3g}{share} over the line"


def _group_headline(data: Mapping[str, Any]) -> str:
    every = data["incidents"]
    firing = [one for one in every if one["status"] != "resolved"]
    symbol = cause(data["cause"]).symbol if firing else RESOLVED
    about = firing or every
    words = {cause(one["cause"]).says if firing else cause(one["cause"]).over for one in about}
    models = sorted({one["model"] for one in about})
    named = ", ".join(models[:_LISTED])
    more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
    what = words.pop() if len(words) == 1 else f"{len(words)} kinds of trouble"
    return f"{symbol} {len(about)} incidents: {named}{more}: {what}"


def _group_reason(data: Mapping[str, Any]) -> str:
    lines = [f"{one['incident']} {one['model']}: {one['title']}" for one in data["incidents"]]
    more = f" … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "; ".join(lines[:_LISTED]) + more


def _address(data: Mapping[str, Any]) -> str:
    links = data["links"]
    version = f"MLflow v{data['version']}" if data["version"] else "MLflow"
    part = f" (of {data['story']})" if data["story"] != data["incident"] else ""
    numbers = ", ".join(str(one["incident"]) for one in data["incidents"][:_LISTED])
    if len(data["incidents"]) > 1:
        return _joined(
            f"incidents {numbers}" + (" …" if len(data["incidents"]) > _LISTED else ""),
            data["severity"],
            data["environment"],
            _labelled("dashboard ", links.get("dashboard", "")),
            _labelled("runbook ", links.get("runbook", "")),
        )
    return _joined(
        f"incident {data['incident']}{part}",
        data["severity"],
        data["environment"],
        _labelled("owner ", data["owner"]),
        _labelled("dashboard ", links.get("dashboard", "")),
        _labelled(f"{version} ", links.get("mlflow", "")),
        _labelled("runbook ", links.get("runbook", "")),
        _labelled("silence 4 h ", links.get("silence", "")),
        data["command"],
    )


def _columns(data: Mapping[str, Any]) -> str:
    named, count = data["columns"][:_SHOWN], data["column_count"]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(named) + more


def _labelled(label: str, value: str) -> str:
    return f"{label}{value}" if value else ""


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count:,} checks"


def _day(moment: datetime, at: datetime) -> str:
    day = f"{moment.day} {moment:%b}"
    return day if moment.year == at.year else f"{day} {moment.year}"
