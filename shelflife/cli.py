"""The command line. Results on stdout, talk on stderr; `--json` on every command.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 drift or decay found (with
`--fail-on-drift`), 4 refused by the gate, 5 imported but for rows that could not be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from core.errors import GateRefused, InputError, NotFound, SettingsError, ShelflifeError

OK, FAILED, USAGE, DRIFT, REFUSED, REJECTED = 0, 1, 2, 3, 4, 5
Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Usage errors that say what to do next."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}\nSee `{self.prog} --help`.\n")


def parser() -> argparse.ArgumentParser:
    """Every command with its options. Builds nothing heavy: `--help` must be instant."""
    from shelflife import __version__
    from shelflife.backtest.command import options as backtest_options
    from shelflife.incidents_command import options as incident_options
    from shelflife.incidents_command import silence_options
    from shelflife.log_command import options as log_options
    from shelflife.tokens_command import options as token_options

    common = _Parser(add_help=False)
    common.add_argument(
        "--settings", metavar="FILE", help="settings file; $SHELFLIFE_SETTINGS or shelflife.yaml"
    )
    common.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    who = _Parser(add_help=False)
    who.add_argument("--by", metavar="WHO", default="", help="who asks for it; the login name")
    who.add_argument("--reason", metavar="TEXT", default="", help="why; recorded with it")

    top = _Parser(
        prog="shelflife",
        description="Serve a model, notice when it goes stale, retrain it when that helps.",
    )
    top.add_argument("--version", action="version", version=f"shelflife {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, *parents: _Parser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents])

    demo = add("demo", "replay two years of real invoices through the whole loop")
    demo.add_argument("--exit", action="store_true", help="end after the summary")
    demo.add_argument("--folder", default=".demo", help="where it is kept; emptied at the start")
    init = add("init", "write a commented settings file")
    init.add_argument("--force", action="store_true", help="replace an existing file")
    up = add("up", "start serving, checks, dashboard and MLflow UI, and watch over them")
    up.add_argument("--only", metavar="PART", nargs="+", default=[], choices=_PARTS, help=_ONLY)
    add("serve", "answer inference requests and take labels (one process)")
    add("watch", "run checks, retraining, deliveries (one process; several may share a ledger)")
    _register(add("register", "adopt a model: an estimator or MLflow model, rows and labels"))
    _import(add("import", "predictions and labels from Parquet, CSV or a SQL query, once"))
    check = add("check", "check a model now and explain what was found")
    check.add_argument("model")
    check.add_argument("--at", metavar="TIME", help="as of this moment; nothing is recorded then")
    check.add_argument("--fail-on-drift", action="store_true", help=f"exit {DRIFT} unless healthy")
    compared = add("compare", "compare two files with no service at all")
    compared.add_argument("reference", metavar="REFERENCE", help="Parquet or CSV")
    compared.add_argument("current", metavar="CURRENT", help="Parquet or CSV")
    compared.add_argument("--columns", nargs="+", metavar="COLUMN", help="only these")
    compared.add_argument(
        "--error-rate", type=float, default=0.05, metavar="RATE",
        help="chance that two alike samples are called drifted (%(default)s)",
    )  # fmt: skip
    compared.add_argument(
        "--classifier", action="store_true", help="all columns at once, too (a second or two)"
    )
    compared.add_argument("--html", metavar="FILE", help="write Evidently's report, too (seconds)")
    compared.add_argument("--fail-on-drift", action="store_true", help=f"exit {DRIFT} on drift")
    retrain = add("retrain", "retrain now; the gate still decides", who)
    retrain.add_argument("model")
    retrain.add_argument("--no-wait", action="store_true", help="leave the rest to `watch`")
    promote = add("promote", "make a version the champion", who)
    promote.add_argument("model")
    promote.add_argument("version")
    promote.add_argument("--force", action="store_true", help="although the gate refused it")
    add("rollback", "go back to the version before", who).add_argument("model")
    receivers = add("receivers", "who is told: list, test, enable, failed, replay")
    receivers.add_argument("verb", nargs="?", default="list", choices=RECEIVER_VERBS)
    receivers.add_argument("name", nargs="?", help="the receiver that is meant")
    incident_options(add("incidents", "what is open; acknowledge, silence, resolve, …", who))
    silence_options(add("silences", "what nobody wants to hear of: list, add, end", who))
    listed = add("runs", "retraining runs, newest first", who)
    listed.add_argument("id", nargs="?", help=_ONE + _OR_VERB)
    listed.add_argument("run", nargs="?", help="the run that is meant, after such a word")
    listed.add_argument("--out", metavar="FILE", help="of `dataset`: the Parquet to write")
    listed.add_argument("--model", help="only this model's")
    listed.add_argument("--all", action="store_true", help="the finished ones too")
    accept = add("accept", "a lasting change is the new normal: measure drift against it", who)
    accept.add_argument("model")
    accept.add_argument("--over", metavar="SPAN", help="rows of the last 7d, 12h, …; the window's")
    backtest_options(add("backtest", "replay a history: what policies would have done and cost"))
    log_options(add("log", "look after the inference log: status, seal, compact, forget, …"), who)
    token_options(add("tokens", "who may use the API: create, list, revoke", who))
    add("doctor", "find what is wrong with this installation, and how to mend it")
    completion = add("completion", "write the script that lets your shell complete all this")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return top


_ONE = "one of them, with everything known about it"
#: What may be asked of one run, as in `shelflife runs approve ID`.
VERBS = ("approve", "reject", "resume", "abandon", "dataset")
#: `shelflife receivers`: a table, one real message, send again after a 410, what failed for good.
RECEIVER_VERBS = ("list", "test", "enable", "failed", "replay")
_OR_VERB = "; or what to do with one: " + ", ".join(VERBS)
#: Commands that must not pay for the imports of the others.
_MODULES = {
    "compare": "shelflife.compare_command",
    "receivers": "shelflife.receivers_command",
    "completion": "shelflife.completion",
    "incidents": "shelflife.incidents_command",
    "silences": "shelflife.incidents_command",
}
_PARTS = ("serve", "watch", "dashboard", "mlflow")
_ONLY = "only these parts: " + ", ".join(_PARTS)


def _register(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument(
        "--model", required=True, help=".skops, .joblib or .pkl file, or MLflow URI"
    )
    command.add_argument("--reference", required=True, help="Parquet or CSV: inputs and labels")
    command.add_argument("--target", required=True, metavar="COLUMN", help="the label")
    command.add_argument("--time", metavar="COLUMN", help="event time of each row")
    command.add_argument("--label-time", metavar="COLUMN", help="when each label became known")
    command.add_argument("--id", metavar="COLUMN", help="unique id of each row")
    command.add_argument("--held-out", action="store_true", help="the model never saw these rows")
    command.add_argument("--metric", help="brier, log_loss, mae or rmse")
    command.add_argument("--promote", action=argparse.BooleanOptionalAction, default=None)
    command.add_argument("--by", default="", help="who registers it; the login name")
    command.add_argument(
        "--trust-pickle", action="store_true", help="unpickle the model, running any code in it"
    )


def _import(command: argparse.ArgumentParser) -> None:
    add = command.add_argument

    def column(option: str, text: str) -> None:
        add(option, metavar="COLUMN", default="", help=text)

    add("files", nargs="*", help="Parquet or CSV: paths, globs, fsspec URLs")
    add("--sql", nargs=2, metavar=("URL", "QUERY"), help="SQLAlchemy URL (or env:NAME) and query")
    add("--model", required=True, metavar="NAME", help="whose predictions or labels these are")
    column("--id", "prediction id; labels are joined on it")
    column("--time", "when a prediction was made")
    column("--label", "what turned out true")
    column("--label-time", "when that became known")
    add("--label-delay", metavar="SPAN", default="", help="... or how long after the event time")
    column("--prediction", "what the model answered, where it is one number")
    add("--output", metavar="NAME=COLUMN", action="append", default=[], help="one of its outputs")
    add("--input", metavar="NAME=COLUMN", action="append", default=[], help="an input's column")
    add("--ignore", metavar="COLUMN", action="append", default=[], help="not an input")
    add("--version", dest="version_", metavar="COLUMN|VERSION", default="", help="who answered")
    add("--role", choices=("history", "champion"), help="champion: it answered callers")
    add("--tz", default="UTC", metavar="ZONE", help="time zone of times that name none; UTC")
    add("--encoding", default="utf-8", help="of CSV files")
    add("--delimiter", default="", help="of CSV files; a comma, or a tab in .tsv")
    add("--dry-run", action="store_true", help="show the mapping and the first problems only")
    add("--again", action="store_true", help="read files that were imported before, too")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = parser().parse_args(arguments)
    from importlib import import_module

    try:
        module = import_module(_MODULES.get(given.command, "shelflife.command_line"))
        run: Command = getattr(module, f"do_{given.command}")
        return run(given)
    except (SettingsError, InputError, NotFound) as error:
        return _fail(given.command, error, USAGE)
    except GateRefused as error:
        return _fail(given.command, error, REFUSED)
    except ShelflifeError as error:
        return _fail(given.command, error, FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing more to say
        return FAILED


def _fail(command: str, error: Exception, code: int) -> int:
    print(f"shelflife {command}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
