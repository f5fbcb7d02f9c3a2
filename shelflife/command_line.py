"""What each command does: `do_<command>` for every command of `shelflife.cli`."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from core.errors import GateRefused, InputError
from core.times import duration, parse_time
from shelflife import show
from shelflife.cli import DRIFT, FAILED, OK, VERBS
from shelflife.service import SETTINGS_FILE, Service, wall_clock

_HEALTHY = ("healthy", "insufficient_data")
_POLL = 0.3
_APPROVED = 30.0  # seconds that `runs approve` carries the run on for


def _out(given: argparse.Namespace, value: object, text: str) -> None:
    """The result: as JSON when asked for, for people otherwise."""
    data = msgspec.json.format(msgspec.json.encode(value)).decode() if given.json else text
    sys.stdout.write(data + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _who(given: argparse.Namespace) -> str:
    return given.by or os.environ.get("SHELFLIFE_USER") or getpass.getuser()


def do_demo(given: argparse.Namespace) -> int:
    from shelflife.demo.run import Demo

    return Demo(Path(given.folder), leave=given.exit, as_json=given.json).run()


def do_init(given: argparse.Namespace) -> int:
    from shelflife.template import TEMPLATE

    path = Path(given.settings or SETTINGS_FILE)
    if path.exists() and not given.force:
        raise InputError("file", str(path), "a path that does not exist yet, or --force")
    path.write_text(TEMPLATE)
    steps = (
        f"wrote {path}\nnext: shelflife register NAME --model FILE --reference FILE --target COLUMN"
        "\n      shelflife up"
    )
    _out(given, {"file": str(path)}, steps)
    return OK


def do_up(given: argparse.Namespace) -> int:
    from shelflife import supervisor

    service = Service.open(given.settings)
    _ = service.ledger, service.registry  # created once, before several processes would race
    wanted = supervisor.parts(service.settings, _file(given), only=tuple(given.only))
    service.close()
    for part in wanted:
        _say(f"{part.name:10} {part.address}")
    _say(f"logs in {service.home / 'logs'}; Ctrl-C stops everything")
    return supervisor.Supervisor(wanted, service.home / "logs", _say).run_forever()


def _file(given: argparse.Namespace) -> str | None:
    """The settings file as the child processes must be told it; they keep our folder."""
    return given.settings or os.environ.get("SHELFLIFE_SETTINGS")


def do_serve(given: argparse.Namespace) -> int:
    from shelflife.server import serve

    return serve(Service.open(given.settings), given.settings)


def do_watch(given: argparse.Namespace) -> int:
    from shelflife.watcher import watch

    return watch(Service.open(given.settings))


def do_register(given: argparse.Namespace) -> int:
    from shelflife.register import register

    service = Service.open(given.settings)
    version = register(
        given.name,
        given.model,
        reference=_table(given.reference),
        target=given.target,
        time=given.time,
        label_time=given.label_time,
        id=given.id,
        held_out=given.held_out,
        metric=given.metric,
        service=service,
        promote=given.promote,
        trust_pickle=given.trust_pickle or None,
        by=_who(given),
        progress=lambda line: _say(f"… {line}"),
    )
    baseline, _ = service.baseline(version)
    _out(
        given,
        {"version": version, "expected": baseline.expected},
        show.registered(version, baseline),
    )
    return OK


def _table(name: str) -> Any:
    import pandas as pd

    path = Path(name)
    if not path.is_file():
        raise InputError("reference", name, "an existing Parquet or CSV file")
    if path.suffix in (".parquet", ".pq"):
        return pd.read_parquet(path)
    if path.suffix in (".csv", ".tsv", ".txt"):
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    raise InputError("reference", name, "a file that ends in .parquet or .csv")


def do_import(given: argparse.Namespace) -> int:
    from shelflife.importing import command

    return command.run(given, _out, _say)


def do_check(given: argparse.Namespace) -> int:
    from shelflife import actions

    service = Service.open(given.settings)
    at = parse_time(given.at, field="--at") if given.at else wall_clock()
    result = actions.check_now(service, given.model, at=at, record=given.at is None)
    _out(given, {"check": result.check, "decision": result.decision}, show.check(result))
    if given.fail_on_drift and result.check.state not in _HEALTHY:
        return DRIFT
    return OK


def do_retrain(given: argparse.Namespace) -> int:
    from shelflife import actions

    service, now = Service.open(given.settings), wall_clock()
    run_id = actions.retrain_now(service, given.model, by=_who(given), reason=given.reason, at=now)
    _say(f"run {run_id} started: dataset, training, gate, registration, promotion")
    if given.no_wait:
        _out(given, {"run": run_id}, f"run {run_id}; follow it with `shelflife runs {run_id}`")
        return OK
    row = _follow(service, given.model, run_id)
    _out(given, row, show.run(row))
    if row.state == "refused":
        raise GateRefused(row.outcome)
    return FAILED if row.state == "failed" else OK


def _follow(service: Service, model: str, run_id: str, *, seconds: float | None = None) -> Any:
    """Carry the run here until it ends, waits for a person, or stays in a stage that takes long
    (or for so many seconds): the scheduler carries it on."""
    from retrain import run
    from shelflife import actions
    from shelflife.leases import held
    from shelflife.runs import advance

    end = None if seconds is None else time.monotonic() + seconds
    while (row := run.load(service.ledger, run_id)).state == "running":
        if end is not None and time.monotonic() > end:
            return row
        with held(service.ledger, f"run:{model}") as lease:
            if lease is None:  # a scheduler was faster: watch it work
                time.sleep(_POLL)
                continue
            now = wall_clock()
            found = advance(service, model, at=now, wall=now, lease=lease)
            if found is not None and found.state == "running":
                actions.hand_over(service, model, at=now)
                if found.step in ("shadow", "canary"):
                    return found
                time.sleep(_POLL)
    return row


def do_promote(given: argparse.Namespace) -> int:
    from shelflife import actions

    service = Service.open(given.settings)
    version = service.registry.get(given.model, given.version)
    if version.tags.get("shelflife.gate") in ("refused", "asks") and not given.force:
        raise GateRefused(
            f"the gate refused version {given.version} of {given.model}; see `shelflife runs`, "
            "or promote it anyway with --force --reason WHY"
        )
    if given.force and not given.reason:
        raise InputError("--reason", "", "why a version is promoted against the gate's word")
    chosen = actions.promote_now(
        service, given.model, given.version, by=_who(given), reason=given.reason, at=wall_clock()
    )
    _out(given, chosen, _moved(service, given.model, chosen.version))
    return OK


def do_rollback(given: argparse.Namespace) -> int:
    from shelflife import actions

    service = Service.open(given.settings)
    chosen = actions.rollback_now(
        service, given.model, by=_who(given), reason=given.reason, at=wall_clock()
    )
    _out(given, chosen, _moved(service, given.model, chosen.version))
    return OK


def _moved(service: Service, model: str, version: str) -> str:
    from shelflife import actions

    answering = actions.served(service, model, version, within=timedelta(seconds=15))
    how = {True: "and answers", False: "but no worker answers with it yet", None: "(not served)"}
    return f"{model}: version {version} is the champion {how[answering]}"


def do_accept(given: argparse.Namespace) -> int:
    from shelflife.accepting import accept_now

    over = duration(given.over) if given.over else None
    done = accept_now(
        Service.open(given.settings), given.model, by=_who(given), reason=given.reason,
        at=wall_clock(), over=over,
    )  # fmt: skip
    ended = f"; incident {done.resolved} is resolved" if done.resolved else ""
    text = f"{done.model}: drift of version {done.version} is measured against {done.rows:,} rows"
    _out(given, done, f"{text} since {done.since:%Y-%m-%d %H:%M} from now on{ended}")
    return OK


def do_runs(given: argparse.Namespace) -> int:
    if given.id in VERBS:
        return _decide(given)
    if given.run is not None:
        raise InputError("runs", given.id, f"the id of one run, or one of {', '.join(VERBS)} first")
    rows = show.fetch(Service.open(given.settings).ledger, "runs", given)
    _out(given, rows, show.runs(rows, detailed=given.id is not None))
    return OK


def do_backtest(given: argparse.Namespace) -> int:
    from shelflife.backtest.command import run

    return run(given)


def _decide(given: argparse.Namespace) -> int:
    """`shelflife runs approve ID` and its like; what is decided is carried out here."""
    from shelflife import actions

    if given.run is None:
        raise InputError("runs " + given.id, None, "the id of a run; `shelflife runs` lists them")
    service, now = Service.open(given.settings), wall_clock()
    if given.id == "dataset":
        return _dataset(given, service)
    if given.id == "resume":
        row = actions.resume_now(service, given.run, at=now)
    else:
        act = {
            "approve": actions.approve_now,
            "reject": actions.reject_now,
            "abandon": actions.abandon_now,
        }[given.id]
        row = act(service, given.run, by=_who(given), reason=given.reason, at=now)
    if given.id == "approve":
        row = _follow(service, row.model, row.id, seconds=_APPROVED)
    _out(given, row, show.run(row))
    return FAILED if row.state == "failed" else OK


def _dataset(given: argparse.Namespace, service: Service) -> int:
    """`shelflife runs dataset ID`: the very rows a run learned from and was judged on."""
    from shelflife import actions

    file = Path(given.out or f"dataset-{given.run}.parquet")
    if not file.absolute().parent.is_dir():
        raise InputError("--out", given.out, "a file in a folder that exists")
    found = actions.dataset_of(service, given.run, file)
    _out(given, found, show.dataset(found))
    return OK


def do_log(given: argparse.Namespace) -> int:
    from shelflife import log_command

    return log_command.run(given, _who(given) if "by" in given else "")


def do_tokens(given: argparse.Namespace) -> int:
    from shelflife import tokens_command

    return tokens_command.run(given, _out, by=_who(given))


def do_doctor(given: argparse.Namespace) -> int:
    from shelflife import doctor

    service = Service.open(given.settings)
    found = doctor.examine(service)
    _out(given, found, show.findings(found))
    return FAILED if any(each.level == "error" for each in found) else OK
