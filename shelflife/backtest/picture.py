"""The picture of a backtest: one page or notebook cell, plain SVG, nothing loaded from anywhere.

Three panels share one time axis: the loss of each policy, what it saved so far with its fits paid,
and a lane per policy with what happened: fits promoted, fits refused, pages, rollbacks. Every name
that comes from the user is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrain.wording import METRIC_WORDS
from shelflife.backtest import words
from shelflife.backtest.axes import Axis, Scale, days, ticks
from shelflife.backtest.results import EVERY_POLICY, NEVER_POLICY, PolicyResult, WindowResult

if TYPE_CHECKING:
    from shelflife.backtest.face import Backtest

# Okabe and Ito's palette: told apart by colour-blind readers; references are grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REFERENCE = {NEVER_POLICY: "#8a8f98", EVERY_POLICY: "#4b5058"}
_WIDTH, _LEFT, _RIGHT = 1060, 76, 20
_LOSS, _SAVED, _LANE, _GAP = 270, 150, 30, 52
_SMOOTH = 5  # windows in the running mean that is drawn bold

_STYLE = """
.sl{--ink:#1c2026;--soft:#5b626d;--line:#e3e6ea;--paper:#fff;--tint:#f6f7f9;
 font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
 background:var(--paper);max-width:1100px;margin:0 auto;padding:24px 20px}
@media (prefers-color-scheme:dark){.sl.page{--ink:#e8eaee;--soft:#a3abb8;--line:#343a44;
 --paper:#15181d;--tint:#1d2128}}
.sl h1{font-size:22px;margin:0 0 2px}.sl h2{font-size:15px;margin:26px 0 6px}
.sl p{margin:4px 0}.sl .soft,.sl footer{color:var(--soft)}
.sl ul{margin:8px 0 0;padding-left:18px}
.sl svg{display:block;width:100%;height:auto;margin:10px 0;overflow:visible}
.sl svg text{fill:var(--soft);font-size:12px}.sl svg .title{fill:var(--ink);font-weight:600}
.sl svg .grid{stroke:var(--line);stroke-width:1}.sl svg .zero{stroke:var(--soft);stroke-width:1}
.sl svg .raw{fill:none;stroke-width:1;opacity:.3}.sl svg .mean{fill:none;stroke-width:2.2}
.sl svg .hit{fill:transparent}.sl svg .hit:hover{fill:var(--soft);opacity:.14}
.sl table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:8px 0}
.sl th,.sl td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right}
.sl th{color:var(--soft);font-weight:500}.sl th:first-child,.sl td:first-child{text-align:left}
.sl td.text{text-align:left}.sl .key{display:inline-block;width:10px;height:10px;border-radius:2px;
 margin-right:7px}.sl .best td{font-weight:600}
.sl pre{background:var(--tint);padding:12px 14px;border-radius:6px;overflow:auto;margin:8px 0}
.sl summary{cursor:pointer;padding:6px 0}.sl .scroll{max-height:420px;overflow:auto}
.sl .scroll th{position:sticky;top:0;background:var(--paper)}
.sl .advice{border-left:3px solid #0072B2;padding:6px 12px;background:var(--tint);margin:12px 0}
"""


def page(found: Backtest) -> str:
    """A self-contained HTML page."""
    body = fragment(found, full=True)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>shelflife backtest</title>'
        f"<style>html,body{{margin:0}}body{{background:#fff}}@media (prefers-color-scheme:dark)"
        f"{{body{{background:#15181d}}}}</style></head><body>{body}</body></html>\n"
    )


def fragment(found: Backtest, *, full: bool = False) -> str:
    """The same without the page around it; without each window's row unless `full`."""
    facts = found.facts
    subtitle = (
        f"{facts.rows:,} rows until {facts.until[:10]}, the first {facts.train_rows:,} trained the "
        f"first model, {facts.windows} windows; {facts.task} target {facts.target}; "
        f"labels known {facts.labels_known}; {facts.estimator}; seed {facts.seed}"
    )
    parts = [
        f"<style>{_STYLE}</style>",
        f'<div class="sl{" page" if full else ""}">',
        "<h1>What would have happened</h1>",
        f'<p class="soft">{_safe(subtitle)}</p>',
        "<ul>" + "".join(f"<li>{_marked(s)}</li>" for s in words.sentences(found)) + "</ul>",
        f'<p class="advice">{_marked(words.advice(found))}</p>',
        _chart(found),
        _table(found),
    ]
    if words.best(found) != NEVER_POLICY:
        parts += ["<h2>To take over</h2>", f"<pre>{_safe(words.yaml_to_take(found))}</pre>"]
    if full:
        parts += ["<h2>Every window</h2>", *(_details(n, p) for n, p in found.policies.items())]
    notes = "".join(f"<li>{_safe(note)}</li>" for note in facts.notes)
    parts += [f'<h2>Assumed</h2><ul class="soft">{notes}</ul>' if notes else "", "</div>"]
    return "".join(parts)


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _marked(text: str) -> str:
    """Escaped text with `names` as code."""
    pieces = _safe(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _drawn(found: Backtest) -> dict[str, PolicyResult]:
    """References first, so that the policies lie on top of them."""
    return {n: p for n, p in found.references.items() if n not in found.policies} | found.policies


def _colour(found: Backtest, name: str) -> str:
    if name in _REFERENCE:
        return _REFERENCE[name]
    asked = [each for each in found.policies if each not in _REFERENCE]
    return _COLOURS[asked.index(name) % len(_COLOURS)]


# --- the chart ------------------------------------------------------------------------------------


def _chart(found: Backtest) -> str:
    drawn = _drawn(found)
    windows = next(iter(drawn.values())).windows
    times = Scale(days(windows[0].start), days(windows[-1].end), _LEFT, _WIDTH - _RIGHT)
    lanes = [*found.policies, *(name for name in drawn if name not in found.policies)]
    top_saved = 30 + _LOSS + _GAP
    top_lanes = top_saved + _SAVED + _GAP
    height = top_lanes + _LANE * len(lanes) + 46
    metric = METRIC_WORDS.get(found.facts.metric, found.facts.metric)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="loss, savings and events '
        f'of each policy over time">',
        _time_axis(times, top_lanes + _LANE * len(lanes), height),
        _heading(_LEFT, 18, f"{metric} of each window (bold: running mean of {_SMOOTH} windows)"),
        _losses(found, drawn, times, 30),
        _heading(_LEFT, top_saved - 12, "Saved against never retraining, fits paid, in windows' "
                 "worth of expected loss"),
        _savings(found, drawn, times, top_saved),
        _heading(_LEFT, top_lanes - 12, "Fits promoted ▲  refused ×   pages ●   rollbacks ◆"),
        *(_lane(found, name, drawn[name], times, top_lanes + i * _LANE)
          for i, name in enumerate(lanes)),
        _hover(found, drawn, times, 30, height - 76),
        "</svg>",
    ]  # fmt: skip
    return "".join(parts)


def _heading(x: float, y: float, text: str) -> str:
    return f'<text class="title" x="{x:.0f}" y="{y:.0f}">{_safe(text)}</text>'


def _losses(found: Backtest, drawn: dict[str, PolicyResult], times: Scale, top: int) -> str:
    values = [w.loss for p in drawn.values() for w in p.windows if w.loss is not None]
    axis = Axis.around(_trimmed(values), top + _LOSS, top)
    parts = [_grid(axis)]
    for name, one in drawn.items():
        points = [(_middle(w), w.loss) for w in one.windows if w.loss is not None]
        colour = _colour(found, name)
        dash = ' stroke-dasharray="5 4"' if name in _REFERENCE else ""
        if name not in _REFERENCE:
            parts.append(f'<path class="raw" stroke="{colour}" d="{_path(points, times, axis)}"/>')
        smooth = _running(points)
        line = _path(smooth, times, axis)
        parts.append(f'<path class="mean" stroke="{colour}"{dash} d="{line}"/>')
    return "".join(parts)


def _savings(found: Backtest, drawn: dict[str, PolicyResult], times: Scale, top: int) -> str:
    """Cumulative: (loss of never − loss) a window, less the fits, over the expected loss."""
    facts = found.facts
    never = found.references[NEVER_POLICY].windows
    unit = facts.expected_loss or found.references[NEVER_POLICY].summary.mean_loss or 1.0
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, one in drawn.items():
        total, points = 0.0, [(days(one.windows[0].start), 0.0)]
        for window, other in zip(one.windows, never, strict=True):
            if window.loss is not None and other.loss is not None:
                total += (other.loss - window.loss) / unit
            total -= (window.fit + window.probe) * facts.cost_of_fit
            points.append((days(window.end), total))
        lines[name] = points
    values = [y for points in lines.values() for _, y in points]
    axis = Axis.around([*values, 0.0], top + _SAVED, top)
    parts = [_grid(axis, zero=True)]
    for name, points in lines.items():
        dash = ' stroke-dasharray="5 4"' if name in _REFERENCE else ""
        line = _path(points, times, axis)
        parts.append(f'<path class="mean" stroke="{_colour(found, name)}"{dash} d="{line}"/>')
    return "".join(parts)


def _lane(found: Backtest, name: str, one: PolicyResult, times: Scale, top: float) -> str:
    middle, colour = top + _LANE / 2, _colour(found, name)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{middle}" y2="{middle}"/>',
        f'<text x="{_LEFT - 8}" y="{middle + 4:.0f}" text-anchor="end">{_safe(name)}</text>',
    ]
    for window in one.windows:
        x = times.at(days(window.end))
        if window.promoted:
            shape = f"M{x:.1f} {middle - 7} l6.5 12 h-13 z"
            parts.append(f'<path fill="{colour}" d="{shape}"/>')
        if window.rejected:
            cross = f"M{x - 4.5:.1f} {middle - 4.5} l9 9 m0 -9 l-9 9"
            parts.append(f'<path stroke="{colour}" stroke-width="2" fill="none" d="{cross}"/>')
        if window.rolled_back:
            shape = f"M{x:.1f} {middle - 7} l6 7 l-6 7 l-6 -7 z"
            parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2" d="{shape}"/>')
        if window.alarm:
            parts.append(f'<circle cx="{x:.1f}" cy="{middle - 9:.1f}" r="4" fill="#C8102E"/>')
    return "".join(parts)


def _grid(axis: Axis, *, zero: bool = False) -> str:
    parts = []
    for value, text in axis.ticks():
        y = axis.scale.at(value)
        kind = "zero" if zero and value == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_safe(text)}</text>'
        )
    return "".join(parts)


def _time_axis(times: Scale, top: float, height: float) -> str:
    parts = []
    for value, text in ticks(times):
        x = times.at(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{top + 6:.0f}"/>'
            f'<text x="{x:.1f}" y="{top + 24:.0f}" text-anchor="middle">{_safe(text)}</text>'
        )
    return "".join(parts)


def _hover(
    found: Backtest, drawn: dict[str, PolicyResult], times: Scale, top: float, height: float
) -> str:
    """One invisible strip per window whose tooltip says what each policy did there."""
    parts = []
    for index, window in enumerate(next(iter(drawn.values())).windows):
        left, right = times.at(days(window.start)), times.at(days(window.end))
        told = [f"{window.start[:16]} to {window.end[:16]}, {window.rows:,} rows"]
        told += [_tip(name, one.windows[index]) for name, one in reversed(drawn.items())]
        parts.append(
            f'<rect class="hit" x="{left:.1f}" y="{top}" width="{max(right - left, 1):.1f}" '
            f'height="{height}"><title>{_safe(chr(10).join(told))}</title></rect>'
        )
    return "".join(parts)


def _tip(name: str, window: WindowResult) -> str:
    loss = "no labels" if window.loss is None else f"{window.loss:.4g}"
    text = f"{name}: {loss}, v{window.version}, {window.verdict.replace('_', ' ')}"
    text += f"; {window.decision}: {window.reason}"
    if window.outcome:
        text += f"; {window.outcome}"
    return text + (f"; PAGE {window.page}" if window.alarm else "")


def _middle(window: WindowResult) -> float:
    return (days(window.start) + days(window.end)) / 2


def _running(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The mean of the last so many windows, at each window."""
    found: list[tuple[float, float | None]] = []
    for index, (x, _) in enumerate(points):
        last = [y for _, y in points[max(0, index - _SMOOTH + 1) : index + 1] if y is not None]
        found.append((x, sum(last) / len(last)))
    return found


def _trimmed(values: Sequence[float]) -> list[float]:
    """Values without the few that would press all others flat (beyond 5 times the 98 % point)."""
    ordered = sorted(values)
    if not ordered:
        return []
    limit = ordered[int(0.98 * (len(ordered) - 1))] * 5
    return [value for value in ordered if value <= limit]


def _path(points: Sequence[tuple[float, float | None]], times: Scale, axis: Axis) -> str:
    spots = [f"{times.at(x):.1f} {axis.scale.clamped(y):.1f}" for x, y in points if y is not None]
    return "M" + " L".join(spots) if spots else ""


# --- the tables -----------------------------------------------------------------------------------


def _table(found: Backtest) -> str:
    chosen = words.best(found)
    head = "".join(f"<th>{_safe(name)}</th>" for name in words.head())
    rows = []
    for row in words.table(found):
        key = f'<span class="key" style="background:{_colour(found, row[0])}"></span>'
        cells = "".join(f"<td>{_safe(text)}</td>" for text in row[1:])
        kind = ' class="best"' if row[0] == chosen else ""
        rows.append(f"<tr{kind}><td>{key}{_safe(row[0])}</td>{cells}</tr>")
    cost = (
        f"cost: mean loss × {found.facts.windows} windows + fits (probes included) × "
        f"{found.facts.cost_of_fit:g} × the expected loss of the first model; bold: the lowest cost"
    )
    return (
        f"<h2>Policies compared</h2><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}"
        f'</tbody></table><p class="soft">{_safe(cost)}</p>'
    )


_WINDOW_HEAD = ("end", "rows", "version", "loss", "verdict", "decision", "fit", "what and why")


def _details(name: str, one: PolicyResult) -> str:
    head = "".join(f"<th>{text}</th>" for text in _WINDOW_HEAD)
    rows = []
    for window in one.windows:
        loss = "–" if window.loss is None else f"{window.loss:.4g}"
        why = "; ".join(t for t in (window.page, window.reason, window.outcome) if t)
        cells = (window.end[:16].replace("T", " "), f"{window.rows:,}", window.version, loss)
        texts = (window.verdict.replace("_", " "), window.decision)
        rows.append(
            "<tr>"
            + "".join(f"<td>{_safe(text)}</td>" for text in cells)
            + "".join(f'<td class="text">{_safe(text)}</td>' for text in texts)
            + f'<td>{window.fit:g}</td><td class="text">{_safe(why)}</td></tr>'
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        f"<details><summary><code>{_safe(name)}</code></summary>"
        f'<div class="scroll">{table}</div></details>'
    )
