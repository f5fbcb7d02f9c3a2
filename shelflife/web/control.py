"""The control API: state out, requests for action in.

What needs MLflow is written down as a command, which the scheduler carries out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from core import schema
from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import Settings
from core.times import iso, parse_time
from monitor.log.records import SampleLog
from shelflife import commands, health, metrics
from shelflife.health import Facts, Problem
from shelflife.pulses import PULSE
from shelflife.web.edge import Bodies, answer, decode
from shelflife.web.gatekeeper import assert_ours, assert_signed, caller
from shelflife.web.limits import MAX_VERSION, identifier
from shelflife.web.specs import Specs
from shelflife.web.wire import ActionIn

_LISTED = 200  # rows of a listing
_REASON = 3  # characters that a person's reason has at least
_STATES = {
    "incidents": ("noticed", "open", "acknowledged", "resolved"),
    "runs": ("running", "waiting", "promoted", "refused", "failed", "abandoned"),
}


class Control:
    """Handlers over a ledger and a log.

    Args:
        snapshot: this process's own counters, for `shelflife.metrics`.
        clock: wall clock.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        log: SampleLog,
        specs: Specs,
        bodies: Bodies,
        *,
        snapshot: Callable[[], dict[str, Any]],
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._ledger, self._log, self._specs, self._bodies = ledger, log, specs, bodies
        self._snapshot, self._clock = snapshot, clock

    async def act(self, request: Request) -> Response:
        """Write a request for action down."""
        identity = caller(request.scope)
        assert_ours(request.scope)
        model = await self._model(request)
        async with self._bodies.read(request) as raw:
            assert_signed(request.scope, raw)
            body: ActionIn = decode(ActionIn, raw or b"{}")
        for name in ("by", "reason"):
            if "\0" in getattr(body, name):
                raise InputError(name, getattr(body, name), "text without NUL")
        arguments = dict(body.arguments)
        for name, value in arguments.items():
            if isinstance(value, str) and value:
                identifier(value, f"arguments.{name}", 64)
            elif not isinstance(value, str) and abs(value) >= 2**63:
                raise InputError(f"arguments.{name}", value, "a number within 64 bits")
        if identity is not None and len(body.reason.strip()) < _REASON:
            raise InputError("reason", body.reason, "why, in a few words: it is recorded")
        asked = await run_in_threadpool(
            commands.ask,
            self._ledger,
            model,
            request.path_params["action"],
            arguments,
            by=identity.name if identity else body.by or "api",
            reason=body.reason,
            now=self._clock(),
        )
        return answer({"command": asked, "state": "asked"}, status=202)

    async def command(self, request: Request) -> Response:
        """What became of a command."""
        given = str(request.path_params["id"])
        if not (given.isascii() and given.isdigit()) or len(given) > 18:
            raise NotFound("command", given)
        identity = int(given)
        rows = await self._rows(sa.select(schema.commands).where(schema.commands.c.id == identity))
        if not rows:
            raise NotFound("command", identity)
        return answer(rows[0])

    async def models(self, request: Request) -> Response:
        """Every model with its newest check."""
        names = await run_in_threadpool(self._specs.names)
        return answer({"models": [await self._summary(name) for name in sorted(names)]})

    async def model(self, request: Request) -> Response:
        """One model: its newest check in full, and what the log holds of it."""
        name = await self._model(request)
        counts = await run_in_threadpool(self._log.counts, name)
        row = await self._newest(name)
        summary = await self._summary(name)
        check = json.loads(row["result"]) if row else None
        return answer({**summary, "log": msgspec.to_builtins(counts), "check": check})

    async def windows(self, request: Request) -> Response:
        """The realised metric by event-time window, corrected as labels arrive, oldest first."""
        from monitor import scores  # SciPy comes with it: 25 MB that answering does without

        name, asked = await self._model(request), request.query_params
        since, until = (
            parse_time(asked[key], field=key) if key in asked else None
            for key in ("since", "until")
        )
        version = asked.get("version")
        if version is not None:
            identifier(version, "version", MAX_VERSION)
        found = await run_in_threadpool(
            scores.listed, self._ledger, name, since=since, until=until, version=version
        )
        rows = [
            {**msgspec.to_builtins(each), "coverage": each.coverage, "scored": iso(scored)}
            for each, scored in found
        ]
        return answer({"model": name, "windows": rows})

    async def incidents(self, request: Request) -> Response:
        """Incidents, newest first."""
        return answer({"incidents": await self._listed(schema.incidents, request, "id")})

    async def runs(self, request: Request) -> Response:
        """Retraining runs, newest first."""
        return answer({"runs": await self._listed(schema.runs, request, "started")})

    async def health(self, request: Request) -> Response:
        """Whether models are watched and people told: 503 when the monitor is blind or mute.

        Whether this process answers inference requests is another question: `/v2/health/ready`.
        """
        now = self._clock()
        try:
            facts, problems = await run_in_threadpool(self._examine, now)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            why = f"the ledger does not answer ({type(error).__name__})"
            return answer({"status": "failing", "problems": [why], "at": iso(now)}, status=503)
        heard = facts.jobs.get(PULSE)
        texts = [one.text for one in problems]
        if heard is None:
            texts.append("no scheduler was ever started: nothing is checked")
        blind = any(one.severity == "page" for one in problems)
        status = "failing" if blind else "degraded" if texts else "ok"
        body = {"status": status, "problems": texts, "at": iso(now)}
        return answer(body, status=503 if blind else 200)

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics."""
        text = await run_in_threadpool(self._render, self._clock())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _examine(self, now: datetime) -> tuple[Facts, list[Problem]]:
        facts = health.gather(self._ledger, self._settings.home_path)
        models = health.served(self._settings.home_path)
        return facts, health.judge(facts, self._settings, models, now=now)

    def _render(self, now: datetime) -> str:
        found = [one.severity for one in self._examine(now)[1]]
        return metrics.render(self._ledger, self._snapshot(), now=now, problems=found)

    async def _listed(self, table: sa.Table, request: Request, order: str) -> list[dict[str, Any]]:
        query = sa.select(table).order_by(table.c[order].desc()).limit(_LISTED)
        model, state = (request.query_params.get(name) for name in ("model", "state"))
        if model is not None:
            query = query.where(table.c.model == identifier(model, "model", 128))
        if state is not None:
            if state not in _STATES[table.name]:
                raise InputError("state", state, f"one of {list(_STATES[table.name])}")
            query = query.where(table.c.state == state)
        return await self._rows(query)

    async def _summary(self, name: str) -> dict[str, Any]:
        row = await self._newest(name)
        if row is None:
            return {"model": name, "state": None, "reason": "no check yet"}
        keys = ("version", "at", "state", "reason", "metric", "value", "low", "high", "tolerated")
        return {"model": name, **{key: row[key] for key in keys}}

    async def _newest(self, name: str) -> dict[str, Any] | None:
        table = schema.checks
        query = sa.select(table).where(table.c.model == name).order_by(table.c.at.desc()).limit(1)
        rows = await self._rows(query)
        return rows[0] if rows else None

    async def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        def fetch() -> list[dict[str, Any]]:
            with self._ledger.read() as tx:
                return [dict(row._mapping) for row in tx.execute(query)]

        return await run_in_threadpool(fetch)

    async def _model(self, request: Request) -> str:
        return await run_in_threadpool(self._specs.name, str(request.path_params["model"]))
