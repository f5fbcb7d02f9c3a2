"""What the demo shows while it works, and the summary it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shelflife.show import state as state_words

if TYPE_CHECKING:
    from shelflife.demo.summary import Event, Summary
    from shelflife.supervisor import Part

_STYLES = {
    "page": "bold red",
    "ticket": "yellow",
    "resolved": "green",
    "promoted": "bold blue",
    "rejected": "magenta",
    "rollback": "bold magenta",
    "failed": "bold red",
}
Advance = Callable[[int, datetime, str], None]


class Screen:
    """Talk on stderr: lines, one progress bar, a summary."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def title(self, about: str) -> None:
        """What this is and where its data come from."""
        self.console.print(Text("shelflife demo", style="bold"))
        self.console.print(Text(about))

    def say(self, text: str) -> None:
        """A line about what is being done."""
        self.console.print(Text(f"… {text}", style="dim"))

    def event(self, event: Event) -> None:
        """Something happened."""
        self.console.print(_line(event), soft_wrap=True)

    def addresses(self, running: Sequence[Part]) -> None:
        """Where to look."""
        names = {"serve": "API", "dashboard": "dashboard", "mlflow": "MLflow UI"}
        for part in running:
            self.console.print(Text(f"  {names.get(part.name, part.name):10} {part.address}"))

    @contextmanager
    def progress(self, total: int) -> Iterator[Advance]:
        """A bar over the rows; called with how many more, the moment and the model's state."""
        columns = (
            TextColumn("{task.fields[day]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>6,}/{task.total:,} predictions"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("replay", total=total, day="", state="")

            def advance(count: int, at: datetime, state: str) -> None:
                words = state_words(state) if state else ""
                bar.update(task, advance=count, day=f"{at:%d %b %Y}", state=words)

            yield advance

    def summary(self, found: Summary, messages: Sequence[dict[str, Any]]) -> None:
        """The end: what happened, and what on-call would have read."""
        console = self.console
        console.print()
        console.print(Text("What on-call would have read", style="bold"))
        for message in messages:
            text = str(message["data"].get("message") or message["data"].get("title"))
            console.print(Panel(Text(text), title=str(message["type"]), title_align="left"))
        console.print(Text("What happened", style="bold"))
        for event in found.events:
            console.print(_line(event), soft_wrap=True)
        console.print(_versions(found))
        console.print(_numbers(found))
        console.print(Text(found.caveat, style="dim"))


def _line(event: Event) -> Text:
    style = _STYLES.get(event.kind, "")
    return Text.assemble(f"{event.at:%d %b %Y}  ", (f"{event.kind:10}", style), f"  {event.text}")


def _versions(found: Summary) -> Table:
    table = Table(title="Versions", title_justify="left", box=None, pad_edge=False)
    for name in ("version", "trained on", "rows until", "gate", "outcome"):
        table.add_column(name)
    for each in found.versions:
        table.add_row(
            f"v{each.version}",
            f"{each.rows:,} rows",
            each.trained_until[:10],
            each.gate,
            each.state,
        )
    return table


def _numbers(found: Summary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    better = 100 * (1 - found.brier_served / found.brier_frozen)
    rows = [
        ("Brier score served", f"{found.brier_served:.4f}  (n {found.labelled:,})"),
        ("… of version 1 frozen", f"{found.brier_frozen:.4f}  ({better:.0f} % worse avoided)"),
        (
            "retraining runs",
            f"{found.retraining_runs}: {found.promotions} promoted, {found.rejected} refused",
        ),
        ("alarms", f"pages {found.pages}, tickets {found.tickets}"),
        ("predictions", f"{found.requests_sent:,} asked, {found.requests_failed} dropped"),
        (
            "inference log",
            f"{found.rows_acknowledged:,} acknowledged, {found.rows_in_log:,} in the log",
        ),
        ("took", f"{found.seconds:.0f} s"),
    ]
    for name, value in rows:
        table.add_row(Text(name, style="bold"), value)
    return table
