"""A backtest in words: a table, the sentences that matter, and what to take over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retrain.wording import METRIC_WORDS, plural, rounded
from shelflife.backtest.results import EVERY_POLICY, NEVER_POLICY, Facts, PolicyResult, Summary

if TYPE_CHECKING:
    from shelflife.backtest.face import Backtest

_PAGES = 4  # moments of pages that a sentence names
_HEAD = (
    "policy", "loss", "vs never", "vs every:1", "fits", "promoted", "refused", "rollbacks",
    "pages", "cost",
)  # fmt: skip


def report(found: Backtest) -> str:
    """Everything a terminal shows."""
    lines = [_title(found.facts), "", *_aligned(_HEAD, table(found)), ""]
    lines += [f"* {sentence}" for sentence in sentences(found)]
    lines += ["", advice(found), ""]
    lines += [*_indented(yaml_to_take(found)), ""] if _to_take(found) else []
    lines += [f"note: {note}" for note in found.facts.notes]
    return "\n".join(lines).rstrip()


def table(found: Backtest) -> list[list[str]]:
    """One row of texts per policy, the references last."""
    rows = {**found.policies, **found.references}
    return [_row(name, rows[name].summary) for name in rows]


def head() -> tuple[str, ...]:
    """The table's columns."""
    return _HEAD


def _row(name: str, summary: Summary) -> list[str]:
    return [
        name,
        rounded(summary.mean_loss, 4) if summary.mean_loss is not None else "–",
        _saved(summary.gain_vs_never),
        _signed(summary.regret_vs_every),
        f"{summary.fits:.4g}",
        str(summary.promotions),
        str(summary.rejected),
        str(summary.rollbacks),
        str(summary.alarms),
        rounded(summary.cost, 4) if summary.cost is not None else "–",
    ]


def _saved(share: float | None) -> str:
    """A share saved as a change of the loss: saving 7 % of it is −7.0 %."""
    return "–" if share is None else _signed(-share)


def _signed(share: float | None) -> str:
    if share is None:
        return "–"
    text = f"{abs(share):.1%}".replace("%", " %")
    if text == "0.0 %":
        return text
    return f"{'+' if share > 0 else '−'}{text}"


def _title(facts: Facts) -> str:
    metric = METRIC_WORDS.get(facts.metric, facts.metric)
    return (
        f"{plural(facts.windows, 'window')} from {facts.since[:10]} to {facts.until[:10]}: "
        f"{facts.rows:,} rows, the first {facts.train_rows:,} to train on; {facts.task} "
        f"{facts.target}, {metric}, {facts.estimator}"
    )


def sentences(found: Backtest) -> list[str]:
    """What a person should know, most important first."""
    told = [_told(name, one, found) for name, one in found.policies.items()]
    every = found.references[EVERY_POLICY].summary
    if EVERY_POLICY not in found.policies and every.gain_vs_never is not None:
        told.append(
            f"retraining in every window ({plural(int(every.fits), 'fit')}, gated) "
            f"{_changes(every.gain_vs_never)}"
        )
    return told


def _told(name: str, one: PolicyResult, found: Backtest) -> str:
    summary = one.summary
    if name == NEVER_POLICY:
        loss = rounded(summary.mean_loss) if summary.mean_loss is not None else "unknown"
        return f"`never` keeps the first model: loss {loss}, {_pages(one)}"
    every = found.references[EVERY_POLICY].summary
    text = f"`{name}` would have retrained {_times(summary)}"
    if summary.fits:
        text += f" ({summary.promotions} promoted, {summary.rejected} refused)"
    if summary.gain_vs_never is not None:
        text += f", {_changed(summary.gain_vs_never)}"
    if every.fits:
        share = f"{summary.fits / every.fits:.0%}".replace("%", " %")
        text += f", at {share} of the fits of retraining in every window"
    return f"{text}; {_pages(one)}"


def _times(summary: Summary) -> str:
    runs = summary.promotions + summary.rejected
    return "never" if not runs else "once" if runs == 1 else f"{runs} times"


def _changed(gain: float) -> str:
    share = f"{abs(gain):.1%}".replace("%", " %")
    return f"{'saved' if gain >= 0 else 'added'} {share} of the loss of never retraining"


def _changes(gain: float) -> str:
    share = f"{abs(gain):.1%}".replace("%", " %")
    return f"{'saves' if gain >= 0 else 'adds'} {share} of the loss of never retraining"


def _pages(one: PolicyResult) -> str:
    when = [window.end[:10] for window in one.windows if window.alarm]
    if not when:
        return "no pages"
    named = ", ".join(when[:_PAGES]) + (f" and {len(when) - _PAGES} more" if when[_PAGES:] else "")
    return f"{plural(len(when), 'page')}: {named}"


def best(found: Backtest) -> str:
    """The policy with the lowest cost, fits included; of equals the first given, then `never`."""
    every = {**found.policies, NEVER_POLICY: found.references[NEVER_POLICY]}
    known = {name: one.summary.cost for name, one in every.items() if one.summary.cost is not None}
    return min(known, key=lambda name: known[name]) if known else NEVER_POLICY


def advice(found: Backtest) -> str:
    """Which policy to take, and why."""
    chosen = best(found)
    facts = found.facts
    price = f"at {facts.cost_of_fit:g} expected losses of one window per fit"
    if chosen == NEVER_POLICY:
        if list(found.policies) == [NEVER_POLICY]:
            return "Name policies with --policy to compare them with never retraining."
        return (
            f"On this history nothing beats never retraining, {price}: the model hardly decays, or "
            "no candidate was better. Watching it is enough."
        )
    one = found.policies[chosen].summary
    never = found.references[NEVER_POLICY].summary
    share = ""
    if one.cost is not None and never.cost:
        saved = f"{1 - one.cost / never.cost:.1%}".replace("%", " %")
        share = f", {saved} below never retraining with its fits paid"
    return f"Take over `{chosen}`: the lowest cost of those compared {price}{share}."


def _to_take(found: Backtest) -> bool:
    return best(found) != NEVER_POLICY


def yaml_to_take(found: Backtest) -> str:
    """The settings to write into shelflife.yaml, as text."""
    import yaml

    settings: dict[str, Any] = dict(found.facts.settings)
    retrain = {"policy": best(found), **settings.pop("retrain", {})}
    value = {"models": {"YOUR_MODEL": {**settings, "retrain": retrain}}}
    return str(yaml.safe_dump(value, sort_keys=False)).rstrip()


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


def _aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of text: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    lines = []
    for row in [names, *rows]:
        first = row[0].ljust(widths[0])
        rest = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *rest]).rstrip())
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]
