"""`shelflife log …`: the inference log looked after by hand; the scheduler does the same hourly."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.errors import NotFound

if TYPE_CHECKING:
    from shelflife.service import Service


def options(command: argparse.ArgumentParser, who: argparse.ArgumentParser) -> None:
    """The subcommands and what they take."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=text, parents=parents
        )
        # After the action too; what stands before it is not undone by a default here.
        quiet = argparse.SUPPRESS
        made.add_argument("--settings", metavar="FILE", default=quiet, help="settings file")
        made.add_argument("--json", action="store_true", default=quiet, help="the result as JSON")
        return made

    for name, text in (
        ("status", "what the log holds of each model"),
        ("seal", "move hot rows into segments now"),
        ("compact", "merge small segments"),
        ("retain", "delete what is older than the model's `retention`"),
        ("verify", "hash every segment; quarantine what does not match, take back what does again"),
    ):
        add(name, text).add_argument("model", nargs="*", help="only these; all when none is named")
    forget = add("forget", "delete predictions and their labels everywhere in the log", who)
    forget.add_argument("model")
    forget.add_argument("id", nargs="+", help="prediction ids; - reads them from stdin, one a line")
    forget.add_argument(
        "--vacuum", action="store_true", help="rewrite the ledger's file too; writers wait for it"
    )
    add("sweep", "delete files that a crash left in the segments' store")


def run(given: argparse.Namespace, who: str) -> int:
    """Carry one action out; see `cli` for exit codes."""
    from shelflife.cli import FAILED, OK
    from shelflife.command_line import _out
    from shelflife.service import Service

    service = Service.open(given.settings)
    if given.action == "forget":
        value, text = _forget(service, given, who)
    elif given.action == "sweep":
        value, text = _sweep(service)
    else:
        value, text = _EACH[given.action](service, _models(service, given.model))
    _out(given, value, text)
    bad = given.action == "verify" and any(v.state in ("corrupt", "missing") for v in value)
    return FAILED if bad else OK


def _models(service: Service, named: list[str]) -> list[str]:
    known = service.inference_log.models()
    for name in named:
        if name not in known:
            raise NotFound("model in the log", name, f"it holds: {', '.join(known) or 'nothing'}")
    return named or known


def _status(service: Service, models: list[str]) -> tuple[Any, str]:
    found, lines = {}, [f"segments in {service.inference_log.storage.address}"]
    for model in models:
        counts, size = (
            service.inference_log.counts(model),
            service.inference_log.segment_bytes(model),
        )
        found[model] = {
            "counts": counts,
            "bytes": size,
            "sampled": service.inference_log.sampled(model),
        }
        lines.append(
            f"{model}: {counts.predictions:,} predictions ({counts.hot:,} hot, "
            f"{counts.segments:,} segments of {size / 1e6:,.1f} MB), {counts.labels:,} labelled, "
            f"{counts.unknown_labels:,} labels without a prediction; "
            f"seen {counts.seen:,}, kept {counts.kept:,}"
        )
        if counts.quarantined:
            lines.append(
                f"  {counts.quarantined} quarantined: restore the files, then `log verify`"
            )
    return found, "\n".join(lines)


def _seal(service: Service, models: list[str]) -> tuple[Any, str]:
    from shelflife.service import wall_clock

    moved = service.inference_log.seal(before=wall_clock())
    return {"rows": moved}, f"{moved:,} rows sealed"


def _compact(service: Service, models: list[str]) -> tuple[Any, str]:
    from shelflife.service import wall_clock

    merged = {model: service.inference_log.compact(model, at=wall_clock()) for model in models}
    return merged, "\n".join(f"{model}: {n:,} segments merged" for model, n in merged.items())


def _retain(service: Service, models: list[str]) -> tuple[Any, str]:
    from shelflife.housekeeping import retain
    from shelflife.service import wall_clock

    found = {model: retain(service, model, now=wall_clock()) for model in models}
    lines = [
        f"{model}: no `retention` is set"
        if gone is None
        else f"{model}: {gone.rows:,} rows and {gone.labels:,} labels deleted"
        for model, gone in found.items()
    ]
    return found, "\n".join(lines)


def _verify(service: Service, models: list[str]) -> tuple[Any, str]:
    from shelflife.service import wall_clock

    found = [v for model in models for v in service.inference_log.verify(model, at=wall_clock())]
    bad = [each for each in found if each.state != "intact"]
    lines = [f"{len(found) - len(bad):,} of {len(found):,} segments are intact"]
    return found, "\n".join([*lines, *(f"{v.state}: {v.path} ({v.rows:,} rows)" for v in bad)])


_EACH: dict[str, Callable[[Service, list[str]], tuple[Any, str]]] = {
    "status": _status,
    "seal": _seal,
    "compact": _compact,
    "retain": _retain,
    "verify": _verify,
}


def _forget(service: Service, given: argparse.Namespace, who: str) -> tuple[Any, str]:
    from shelflife.service import wall_clock

    ids = [name for each in given.id for name in (_stdin() if each == "-" else [each])]
    gone = service.inference_log.forget(
        given.model, ids, at=wall_clock(), reason=given.reason, by=who
    )
    clean = service.ledger.scrub(whole=given.vacuum)
    text = (
        f"{gone.rows:,} rows and {gone.labels:,} labels deleted, "
        f"{gone.segments:,} segments rewritten"
    )
    if not clean:
        left = "VACUUM the database, or say --vacuum," if not service.ledger.sqlite else "run again"
        text += f"\ndead rows are still in the database's files: {left} to be rid of them"
    return {"forgotten": gone, "clean": clean}, text


def _stdin() -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()]


def _sweep(service: Service) -> tuple[Any, str]:
    from shelflife.service import wall_clock

    swept = service.inference_log.sweep(at=wall_clock())
    return {"files": swept}, f"{len(swept):,} orphaned files deleted"
