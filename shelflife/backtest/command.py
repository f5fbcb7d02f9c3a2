"""`shelflife backtest`: its options, its progress on a terminal, its output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError

if TYPE_CHECKING:
    from shelflife.backtest.face import Progress

TASKS = ("binary", "multiclass", "regression")
METRICS = ("brier", "log_loss", "mae", "rmse")
EPILOG = """\
exit codes: 0 done, 1 the first model could not be trained, 2 wrong usage, columns or history

example: shelflife backtest history.parquet --target churned --time asked_at --label-delay 30d \\
             --policy default --policy every:5 --html backtest.html
"""


def options(command: argparse.ArgumentParser) -> None:
    """Add the command's options; imports nothing heavy."""
    command.epilog = EPILOG
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    add = command.add_argument
    add("file", help="Parquet or CSV: inputs, labels and times, one row per prediction")
    add("--target", required=True, metavar="COLUMN", help="the label")
    add("--time", default="", metavar="COLUMN", help="time of each row; guessed")
    add("--task", choices=TASKS, help="guessed from the labels")
    when = command.add_mutually_exclusive_group()
    when.add_argument("--label-delay", metavar="SPAN", help="a label is known this long after: 30d")
    when.add_argument("--label-time", default="", metavar="COLUMN", help="when it became known")
    add("--train-rows", type=_count, default=0, metavar="N", help="for the first model; a fifth")
    size = command.add_mutually_exclusive_group()
    size.add_argument("--batch-rows", type=_count, default=0, metavar="N", help="rows of a window")
    size.add_argument("--window", metavar="SPAN", help="span of a window: 7d; else forty windows")
    add(
        "--policy", action="append", default=[], metavar="NAME",
        help="default, never, every:N, drift_share, threshold; repeat it to compare several",
    )  # fmt: skip
    add("--estimator", metavar="PACKAGE.MODULE:FACTORY", help="else histogram gradient boosting")
    add("--metric", choices=METRICS, help="the loss: Brier, log loss or MAE by task")
    add(
        "--cost-of-fit", type=float, metavar="C",
        help="cost of a training job, in expected losses of one window (0.2)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of everything that draws numbers (0)")
    add("--id", default="", metavar="COLUMN", help="unique id of each row; repeats are left out")
    add("--features", nargs="+", action="extend", default=[], metavar="COLUMN", help="the inputs")
    add("--drop", nargs="+", action="extend", default=[], metavar="COLUMN", help="no inputs")
    add("--html", metavar="PATH", help="a picture: loss over time, retrains, refusals, pages")


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of rows")
    return count


def run(given: argparse.Namespace) -> int:
    """Do it: the result on stdout, progress and notes on stderr."""
    from shelflife.backtest.face import backtest

    if given.html and not Path(given.html).resolve().parent.is_dir():
        raise InputError("--html", given.html, "a path in a folder that exists")
    with _progress() as progress:
        found = backtest(
            given.file,
            target=given.target,
            time=given.time,
            task=given.task,
            label_delay=given.label_delay,
            label_time=given.label_time,
            train_rows=given.train_rows,
            batch_rows=given.batch_rows,
            window=given.window,
            policies=given.policy or ("default",),
            estimator=given.estimator,
            cost_of_fit=given.cost_of_fit,
            metric=given.metric,
            seed=given.seed,
            id=given.id,
            features=given.features,
            drop=given.drop,
            settings=given.settings,
            progress=progress,
        )
    sys.stdout.write((found.to_json() if given.json else str(found)) + "\n")
    if given.html:
        try:
            path = found.save_html(given.html)
        except OSError as error:
            raise InputError("--html", given.html, f"a writable file ({error})") from None
        sys.stderr.write(f"picture: {path}\n")
    return 0


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar per policy on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        known: dict[str, int] = {}

        def tell(policy: str, done: int, total: int) -> None:
            if policy not in known:
                known[policy] = int(bars.add_task(policy, total=total))
            bars.update(known[policy], completed=done)  # type: ignore[arg-type]

        yield tell
