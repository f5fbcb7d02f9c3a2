"""A believable ledger for tests and screenshots, written straight through `core.schema`.

Four models: `repurchase` decays, has an open incident and a run at its gate; `eta` drifts without
harm; `fraud` is healthy; `churn` has been promoted and not checked yet. `hostile` adds a fifth
whose column names, titles and texts try to be markup.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from core import schema
from core.ledger import Ledger
from monitor.measure.profile import ColumnProfile
from monitor.profiles import keep
from monitor.results import (
    CheckResult,
    ColumnDrift,
    Finding,
    Performance,
    QualityIssue,
    Staleness,
    State,
    Statistic,
)

NOW = datetime(2026, 10, 12, 14, 5, tzinfo=UTC)
HOSTILE = "<img onerror=alert(1)>"
DAY = timedelta(days=1)
_INPUTS = (
    "lifetime_value",
    "days_since_first",
    "previous_invoices",
    "basket_value",
    "basket_lines",
    "basket_units",
    "days_since_previous",
    "country",
    "weekday",
    "hour",
)


def check(
    model: str,
    version: str,
    at: datetime,
    *,
    state: State = "healthy",
    reason: str = "nothing crossed a line",
    metric: str = "brier",
    value: float | None = 0.18,
    expected: float = 0.173,
    half: float = 0.008,
    n: int = 1312,
    coverage: float | None = 0.62,
    drift: dict[str, float] | None = None,
    why: str = "",
) -> CheckResult:
    """A check; `drift` maps columns to the ratio of their deciding test to its line;
    PSI, which decides nothing, is higher."""
    tolerated = expected * 1.1
    columns = tuple(
        ColumnDrift(
            column=name,
            role="output" if name == "probability" else "input",
            kind="categorical" if name in ("country", "weekday") else "numeric",
            n=2400,
            missing_share=0.12 if name == "days_since_previous" else 0.0,
            statistics=(
                Statistic(name="psi", value=0.13 * ratio, threshold=0.1, alarm=ratio >= 1 / 1.3),
                Statistic(name="wasserstein", value=None, threshold=None, why="not for this kind"),
                Statistic(
                    name="levels" if name in ("country", "weekday") else "location",
                    value=5.0 * ratio,
                    threshold=5.0,
                    alarm=ratio >= 1,
                    over_s=14_400.0,
                    rows=400,
                ),
            ),
            drifted=ratio >= 1,
            counts=counts(name, ratio),
        )
        for name, ratio in (drift or {}).items()
    )
    performance = Performance(
        metric=metric,
        value=value,
        low=None if value is None else value - half,
        high=None if value is None else value + half,
        n=n if value is not None else 0,
        coverage=coverage,
        expected=expected,
        tolerated=tolerated,
        worse=None if value is None else value - half > tolerated,
        why=why,
    )
    staleness = Staleness(
        model=41 * 86400.0,
        training_row=72 * 86400.0,
        prediction=180.0,
        label=7200.0,
        promotion=41 * 86400.0,
        label_lag=30 * 86400.0,
    )
    return CheckResult(
        model=model,
        version=version,
        at=at,
        window_start=at - 7 * DAY,
        window_end=at,
        rows=2400,
        labelled=n,
        state=state,
        reason=reason,
        quality=(),
        drift=columns,
        performance=performance,
        staleness=staleness,
        findings=(),
    )


_LEVELS = ("Germany", "France", "Spain", "Norway")
_NAMES = ("country", "weekday")


def counts(name: str, ratio: float) -> tuple[int, ...]:
    """A window's counts in the cells of `profiles`, further from the baseline by `ratio`."""
    if name in _NAMES:
        return (1300 - int(300 * ratio), 600, 400, 90 + int(200 * ratio), int(100 * ratio))
    inner = [max(0, int(80 + 12 * ratio * (i - 15))) for i in range(30)]
    return (2, *inner, int(20 * ratio))


def profiles(ledger: Ledger, model: str, version: str) -> None:
    """The baseline of `_INPUTS` and `probability`: numbers of a skewed shape, four countries."""
    columns = []
    for name in (*_INPUTS, "probability"):
        named = name in _NAMES
        edges = () if named else tuple(round(1.2 ** (i / 2), 3) for i in range(31))
        columns.append(
            ColumnProfile(
                column=name, role="output" if name == "probability" else "input",
                kind="categorical" if named else "numeric", n=2400, missing=0,
                counts=(1300, 600, 400, 100, 0) if named else (0, *(80 for _ in range(30)), 0),
                edges=edges, levels=_LEVELS if named else (), distinct=4 if named else 900,
                mean=None if named else 6.2, sd=None if named else 4.1,
                usual=None if named else (1.1, 14.8),
            )
        )  # fmt: skip
    with ledger.write() as tx:
        keep(tx, model, version, columns)


def served(ledger: Ledger, model: str, version: str, now: datetime, hours: int = 30) -> None:
    """A worker's traffic, an hour at a time."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    with ledger.write() as tx:
        tx.execute(
            schema.traffic.insert(),
            [
                {
                    "worker": "worker-0", "model": name, "version": of,
                    "hour": hour - timedelta(hours=back), "requests": 900 + 30 * (back % 7),
                    "rows": 2100, "batches": 400,
                    "cells": msgspec.json.encode({60: 500, 66: 380, 80: 20}).decode(),
                }
                for back in range(hours)
                for name, of in ((model, version), ("", ""))
            ],
        )  # fmt: skip


def row(result: CheckResult) -> dict[str, Any]:
    """The row of `schema.checks` that holds a result."""
    performance = result.performance
    return {
        "model": result.model,
        "version": result.version,
        "at": result.at,
        "window_start": result.window_start,
        "window_end": result.window_end,
        "rows": result.rows,
        "labelled": result.labelled,
        "state": result.state,
        "reason": result.reason,
        "metric": performance.metric,
        "value": performance.value,
        "low": performance.low,
        "high": performance.high,
        "expected": performance.expected,
        "tolerated": performance.tolerated,
        "result": msgspec.json.encode(result).decode(),
        "created": result.at,
    }


def write(ledger: Ledger, results: list[CheckResult]) -> None:
    with ledger.write() as tx:
        tx.execute(schema.checks.insert(), [row(result) for result in results])


def promote(
    ledger: Ledger,
    model: str,
    version: str,
    at: datetime,
    *,
    kind: str = "gate",
    previous: str = "",
) -> None:
    reason = "first version" if kind == "first" else "ahead by 0.019 [0.012, 0.027] on 1,204 rows"
    with ledger.write() as tx:
        tx.execute(
            schema.promotions.insert().values(
                model=model,
                version=version,
                previous=previous,
                kind=kind,
                at=at,
                by="shelflife" if kind == "gate" else "ops",
                reason=reason,
                sha256="0" * 64,
            )
        )


def fill(path: Path) -> Ledger:
    """The seeded ledger at `path`; the same numbers every time."""
    ledger = Ledger(f"sqlite:///{path}").create()
    dice = random.Random(7)
    _repurchase(ledger, dice)
    _eta(ledger, dice)
    _fraud(ledger, dice)
    promote(ledger, "churn", "1", NOW - timedelta(hours=2), kind="first")
    profiles(ledger, "repurchase", "3")
    profiles(ledger, "eta", "8")
    _waiting(ledger)
    return ledger


def _waiting(ledger: Ledger) -> None:
    """A run of `eta` that waits for a person, with protected segments."""
    value = msgspec.json.decode(gate(True)) | {"metric": "mae", "rule": "ahead", "worth": 811.0}
    value["segments"] = [
        {"name": "country = Germany", "n": 402, "gain": -0.006, "low": -0.02, "high": 0.008,
         "judged": True},
        {"name": "country = France", "n": 611, "gain": 0.031, "low": 0.012, "high": 0.05,
         "judged": True},
    ]  # fmt: skip
    with ledger.write() as tx:
        tx.execute(
            schema.runs.insert().values(
                id="ab12cd34",
                model="eta",
                trigger="stale",
                by="shelflife",
                reason="newer rows promise a gain of 0.02",
                state="waiting",
                champion="8",
                candidate="9",
                started=NOW - timedelta(hours=3),
                updated=NOW,
                gate=msgspec.json.encode(value).decode(),
                active="eta",
                outcome="",
            )
        )


def _quiet(dice: random.Random) -> dict[str, float]:
    columns = {name: dice.uniform(0.1, 0.55) for name in _INPUTS}
    return columns | {"probability": dice.uniform(0.1, 0.5)}


def _repurchase(ledger: Ledger, dice: random.Random) -> None:
    """Two refreshed versions, the third decaying since three days."""
    start = NOW - 180 * DAY
    promoted = {"1": start, "2": start + 65 * DAY, "3": start + 139 * DAY}
    results = []
    for day in range(181):
        at = start + day * DAY - timedelta(minutes=3)
        version = "3" if day >= 139 else "2" if day >= 65 else "1"
        old = (at - promoted[version]) / DAY
        value = 0.168 + 0.00095 * old + 0.004 * math.sin(day / 6) + dice.gauss(0, 0.002)
        if day == 180:
            value = 0.213
        drift = _quiet(dice)
        drift["lifetime_value"] = 0.3 + old / 25 + dice.gauss(0, 0.08)
        drift["days_since_first"] = 0.4 + old / 19 + dice.gauss(0, 0.08)
        drift["previous_invoices"] = 0.2 + old / 40 + dice.gauss(0, 0.06)
        drift["probability"] = 0.2 + old / 45 + dice.gauss(0, 0.06)
        decaying = value - 0.008 > 0.190 and old > 35
        state: State = "decaying" if decaying else "drifting" if old > 20 else "healthy"
        reason = {
            "decaying": "the Brier score is 0.213 [0.205, 0.221], tolerated 0.190, n 1,312: "
            "worse than expected, proven at 95 %",
            "drifting": "1 of 11 columns drifted: days_since_first (location z 7.00, line 5.00, "
            "over the last 4 h)",
            "healthy": "the Brier score is within its tolerance and nothing crossed a line",
        }[state]
        labelled = old >= 3 or version == "1"
        results.append(
            check(
                "repurchase",
                version,
                at,
                state=state,
                reason=reason,
                value=value if labelled else None,
                drift=drift,
                why="" if labelled else "no labels of this version yet",
            )
        )
    write(ledger, results)
    promote(ledger, "repurchase", "1", promoted["1"], kind="first")
    promote(ledger, "repurchase", "2", promoted["2"], previous="1")
    promote(ledger, "repurchase", "3", promoted["3"], previous="2")
    _incident(ledger)
    _runs(ledger, start)
    with ledger.write() as tx:
        tx.execute(
            schema.workers.insert().values(
                worker="worker-0",
                model="repurchase",
                version="3",
                sha256="0" * 64,
                loaded=promoted["3"],
                seen=NOW,
            )
        )


def _incident(ledger: Ledger) -> None:
    opened = NOW - 3 * DAY
    title = "repurchase is decaying: Brier 0.213 [0.205, 0.221], tolerance 0.190, n 1,312"
    finding = Finding(
        cause="decay",
        severity="page",
        title=title,
        text="the Brier score crossed its tolerance of 0.190 three checks in a row; so far that "
        "cost about 0.9 of a retraining run. Carried by days_since_first and lifetime_value.",
        since=opened,
        columns=("days_since_first", "lifetime_value"),
    )
    base = {"model": "repurchase", "version": "3", "severity": "page", "updated": NOW}
    with ledger.write() as tx:
        tx.execute(
            schema.incidents.insert(),
            [
                base
                | {
                    "id": 41,
                    "cause": "broken_feed",
                    "version": "2",
                    "state": "resolved",
                    "title": "repurchase has a broken feed: country 100 % missing since 20 Jul",
                    "finding": "{}",
                    "opened": NOW - 84 * DAY,
                    "resolved": NOW - 83 * DAY,
                    "seen": 6,
                    "report_state": "failed",
                    "report": None,
                    "run_id": None,
                    "open_key": None,
                },
                base
                | {
                    "id": 42,
                    "cause": "decay",
                    "state": "open",
                    "title": title,
                    "finding": msgspec.json.encode(finding).decode(),
                    "opened": opened,
                    "resolved": None,
                    "seen": 4,
                    "report_state": "ready",
                    "report": "reports/incident-42.html",
                    "run_id": "8f3c1d2e",
                    "open_key": "repurchase/decay",
                },
            ],
        )
        events = [
            (opened, "opened", title),
            (opened + timedelta(minutes=1), "run", "run 8f3c1d2e started; v3 is still serving"),
            (NOW - timedelta(minutes=30), "gate", "candidate v4 is being compared with v3"),
        ]
        tx.execute(
            schema.incident_events.insert(),
            [{"incident_id": 42, "at": a, "kind": k, "text": t} for a, k, t in events],
        )
        message = {
            "incident_id": 42,
            "type": "model.decay.detected",
            "body": "{}",
            "created": opened,
            "next_attempt": opened,
        }
        tx.execute(
            schema.outbox.insert(),
            [
                message
                | {
                    "message_id": "msg_1",
                    "receiver": "on-call",
                    "attempts": 1,
                    "state": "delivered",
                    "delivered": opened + timedelta(seconds=2),
                    "status": 204,
                    "error": "",
                },
                message
                | {
                    "message_id": "msg_1",
                    "receiver": "data-science",
                    "attempts": 3,
                    "state": "pending",
                    "delivered": None,
                    "status": 503,
                    "error": "the receiver answered 503 Service Unavailable",
                },
            ],
        )


def gate(passed: bool) -> str:
    """A gate result as `retrain.gate` writes it."""
    low, high = (0.014, 0.029) if passed else (-0.004, 0.009)
    value = {
        "passed": passed,
        "reason": "the candidate's Brier score is lower by 0.021 [0.014, 0.029] on 1,204 rows"
        if passed
        else "ahead by 0.002 [-0.004, 0.009]: not proven on 611 rows",
        "metric": "brier", "champion": 0.211, "candidate": 0.190 if passed else 0.209,
        "gain": 0.021 if passed else 0.002, "low": low, "high": high,
        "n": 1204 if passed else 611, "confidence": 0.9,
        "checks": [
            {"name": "enough_rows", "passed": True, "text": "1,204 rows, at least 200 are needed"},
            {"name": "better", "passed": passed, "text": f"the interval begins at {low}"},
            {"name": "reproduces", "passed": True, "text": "the saved model gave the same outputs"},
        ],
    }  # fmt: skip
    return msgspec.json.encode(value).decode()


def _runs(ledger: Ledger, start: datetime) -> None:
    base: dict[str, Any] = {
        "model": "repurchase",
        "trigger": "decay",
        "by": "shelflife",
        "incident_id": None,
    }
    opened = NOW - 3 * DAY
    with ledger.write() as tx:
        tx.execute(
            schema.runs.insert(),
            [
                base
                | {
                    "id": "2a91bb07", "reason": "decay has cost 1.1 runs since the promotion",
                    "state": "promoted", "champion": "2", "candidate": "3",
                    "started": start + 138 * DAY, "updated": start + 139 * DAY,
                    "finished": start + 138 * DAY + timedelta(minutes=4),
                    "outcome": "v3 is ahead by 0.021 [0.014, 0.029] and serves",
                    "gate": gate(True), "active": None,
                },
                base
                | {
                    "id": "c07e5512", "trigger": "manual", "by": "ops",
                    "reason": "asked for by a person", "state": "refused", "champion": "2",
                    "candidate": None, "started": start + 90 * DAY, "updated": start + 90 * DAY,
                    "finished": start + 90 * DAY + timedelta(minutes=3),
                    "outcome": "the candidate is not better: 0.002 [-0.004, 0.009]",
                    "gate": gate(False), "active": None,
                },
                base
                | {
                    "id": "8f3c1d2e",
                    "reason": "decay has cost 0.9 runs and the labels since promise a gain",
                    "state": "running", "champion": "3", "candidate": "4", "started": opened,
                    "updated": NOW, "finished": None, "incident_id": 42, "outcome": "",
                    "gate": "", "active": "repurchase",
                },
            ],
        )  # fmt: skip
        step = {"run_id": "8f3c1d2e", "attempts": 1, "error": ""}
        minute = timedelta(minutes=1)
        tx.execute(
            schema.run_steps.insert(),
            [
                step
                | {
                    "name": "dataset", "state": "done", "started": opened,
                    "finished": opened + minute,
                    "result": '{"rows": 18211, "labelled": 17640, "left_out": 12}',
                },
                step
                | {
                    "name": "train", "state": "done", "started": opened + minute,
                    "finished": opened + 4 * minute, "result": '{"seconds": 171.2}',
                },
                step
                | {
                    "name": "gate", "state": "running", "started": opened + 4 * minute,
                    "finished": None, "result": "",
                },
            ],
        )  # fmt: skip
        detail = {
            "would_change": "less than 0.5 runs lost, or fewer than 200 new labels",
            "numbers": {"cost": 0.9, "new_labels": 5210},
        }
        decision: dict[str, Any] = {"model": "repurchase", "version": "3", "check_id": None}
        tx.execute(
            schema.decisions.insert(),
            [
                decision
                | {
                    "at": opened - 2 * DAY + i * DAY, "action": "wait", "run_id": None,
                    "reason": f"decay has cost {0.3 + 0.2 * i:.1f} of a run: not worth one yet",
                    "detail": "{}",
                }
                for i in range(2)
            ]
            + [
                decision
                | {
                    "at": opened, "action": "retrain", "run_id": "8f3c1d2e",
                    "reason": "decay has cost 0.9 of a run and 5,210 labels are newer than the "
                    "champion's training data",
                    "detail": msgspec.json.encode(detail).decode(),
                }
            ],
        )  # fmt: skip


def _eta(ledger: Ledger, dice: random.Random) -> None:
    """Six-hourly checks of a regression that drifts without harm."""
    results = []
    for index in range(160):
        at = NOW - timedelta(minutes=41) - (159 - index) * timedelta(hours=6)
        drift = _quiet(dice)
        drift["hour"] = 0.5 + index / 110 + dice.gauss(0, 0.1)
        drifting = drift["hour"] >= 1
        moved = "1 of 11 columns drifted: hour (location z 6.10, line 5.00, over the last 4 h)"
        results.append(
            check(
                "eta", "8", at,
                state="drifting" if drifting else "healthy",
                reason=moved if drifting else "no drift in 11 columns, n 2,400",
                metric="mae", value=4.1 + dice.gauss(0, 0.12), expected=4.09, half=0.21,
                n=8120, coverage=0.97, drift=drift,
            )
        )  # fmt: skip
    write(ledger, results)
    promote(ledger, "eta", "8", NOW - 40 * DAY, kind="human", previous="7")


def _fraud(ledger: Ledger, dice: random.Random) -> None:
    """Hourly checks, nothing to see."""
    write(
        ledger,
        [
            check(
                "fraud", "12", NOW - timedelta(minutes=12) - (400 - i) * timedelta(hours=1),
                metric="log_loss", value=0.0713 + dice.gauss(0, 0.0012), expected=0.0721,
                half=0.003, n=21450, coverage=0.91, drift=_quiet(dice),
            )
            for i in range(401)
        ],
    )  # fmt: skip
    promote(ledger, "fraud", "12", NOW - 96 * DAY, previous="11")


def hostile(ledger: Ledger) -> None:
    """A model whose data tries to be markup, script, link and colour."""
    text = f"{HOSTILE} [click](javascript:alert(1)) :red[boo] $x$ **bold** \u202eevil"
    found = check("evil", "1", NOW - timedelta(minutes=1), state="broken_feed", reason=text)
    drifted = check("evil", "1", NOW, drift={HOSTILE: 3.0, "=HYPERLINK(1)": 0.2}).drift
    issue = QualityIssue(
        column=HOSTILE, kind="missing", value=1.0, expected="0", text=text, broken=True
    )
    results = [
        msgspec.structs.replace(found, drift=drifted, quality=(issue,), at=found.at - i * DAY)
        for i in range(3)
    ]
    write(ledger, results)
    with ledger.write() as tx:
        tx.execute(
            schema.incidents.insert().values(
                id=66, model="evil", cause="broken_feed", version="1", severity="page",
                state="open", title=text, opened=NOW, updated=NOW, open_key="evil/broken_feed",
                finding=msgspec.json.encode(
                    Finding(
                        cause="broken_feed", severity="page", title=text, text=text,
                        columns=(HOSTILE,),
                    )
                ).decode(),
            )
        )  # fmt: skip
        tx.execute(
            schema.incident_events.insert().values(incident_id=66, at=NOW, kind="opened", text=text)
        )
        tx.execute(
            schema.runs.insert().values(
                id="<b>run</b>", model="evil", trigger="manual", reason=text, by=HOSTILE,
                state="failed", champion="1", started=NOW, updated=NOW, finished=NOW,
                outcome=text, gate=msgspec.json.encode({"reason": text, HOSTILE: text}).decode(),
            )
        )  # fmt: skip
