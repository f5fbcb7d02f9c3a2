"""The control API, `/api/v1`: labels in, state out, requests for action.

It shares the serving process and therefore imports nothing heavy: what needs MLflow is written down
as a command, which the scheduler carries out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core import schema
from core.errors import InputError, NotFound, ShelflifeError, TooLarge
from core.ledger import Ledger
from core.settings import Settings
from core.times import iso, parse_time
from monitor import scores
from monitor.log.records import Label, SampleLog
from shelflife import commands, metrics
from shelflife.service import wall_clock

_MAX_LABELS = 100_000
_MAX_ID = 256
Handler = Callable[[Request], Awaitable[Response]]


class LabelIn(msgspec.Struct, forbid_unknown_fields=True):
    """One label as a caller sends it."""

    id: str
    label: str | int | float | bool
    time: str = ""


class LabelsIn(msgspec.Struct, forbid_unknown_fields=True):
    """`{"labels": [{"id": …, "label": …, "time": …}]}`"""

    labels: list[LabelIn]


class ActionIn(msgspec.Struct, forbid_unknown_fields=True):
    """`{"by": …, "reason": …, "arguments": {…}}`"""

    by: str = ""
    reason: str = ""
    arguments: dict[str, str | int] = {}


class Api:
    """Routes of the control API over a ledger and a log."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        log: SampleLog,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self.settings, self.ledger, self.log, self.snapshot = settings, ledger, log, snapshot
        self.limit = int(settings.serving.max_body_mb * 1e6)
        self._models: set[str] = set()

    def routes(self) -> list[Route]:
        """What to mount beside the inference routes."""
        one = "/api/v1/models/{model}"
        return [
            Route("/api/v1/models", self._edge(self.models)),
            Route(one, self._edge(self.model)),
            Route(f"{one}/labels", self._edge(self.labels), methods=["POST"]),
            Route(f"{one}/windows", self._edge(self.windows)),
            Route(f"{one}/actions/{{action}}", self._edge(self.act), methods=["POST"]),
            Route("/api/v1/commands/{id:int}", self._edge(self.command)),
            Route("/api/v1/incidents", self._edge(self.incidents)),
            Route("/api/v1/runs", self._edge(self.runs)),
            Route("/healthz", self._edge(self.health)),
            Route("/metrics", self._edge(self.metrics)),
        ]

    def _edge(self, handler: Handler) -> Handler:
        """Domain errors as HTTP answers; the one place that maps them."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except TooLarge as error:
                return _refused(413, error)
            except InputError as error:
                return _refused(400, error)
            except NotFound as error:
                return _refused(404, error)
            except ShelflifeError as error:
                return _refused(409, error)

        return answer

    async def labels(self, request: Request) -> Response:
        """POST labels; 200 with what became of them once they are committed."""
        model = await self._known(request)
        body = _decode(LabelsIn, await self._body(request))
        if len(body.labels) > _MAX_LABELS:
            raise InputError("labels", f"{len(body.labels)} labels", f"at most {_MAX_LABELS}")
        now = wall_clock()
        found = [_label(model, i, each, now) for i, each in enumerate(body.labels)]
        receipt = await run_in_threadpool(self.log.append_labels, found, received=now)
        return _json({"received": len(found), **msgspec.to_builtins(receipt)})

    async def act(self, request: Request) -> Response:
        """POST a request for action; 202 with the command's id."""
        model = await self._known(request)
        raw = await self._body(request)
        body = _decode(ActionIn, raw or b"{}")
        identity = await run_in_threadpool(
            commands.ask,
            self.ledger,
            model,
            request.path_params["action"],
            dict(body.arguments),
            by=body.by or "api",
            reason=body.reason,
            now=wall_clock(),
        )
        return _json({"command": identity, "state": "asked"}, status=202)

    async def command(self, request: Request) -> Response:
        """GET what became of a command."""
        identity = request.path_params["id"]
        rows = await self._rows(sa.select(schema.commands).where(schema.commands.c.id == identity))
        if not rows:
            raise NotFound("command", identity)
        return _json(rows[0])

    async def models(self, request: Request) -> Response:
        """GET every model with its newest check."""
        names = await run_in_threadpool(self._names)
        return _json({"models": [await self._summary(name) for name in sorted(names)]})

    async def model(self, request: Request) -> Response:
        """GET one model: its newest check in full, and what the log holds of it."""
        name = await self._known(request)
        counts = await run_in_threadpool(self.log.counts, name)
        row = await self._newest(name)
        summary = await self._summary(name)
        check = json.loads(row["result"]) if row else None
        return _json({**summary, "log": msgspec.to_builtins(counts), "check": check})

    async def windows(self, request: Request) -> Response:
        """GET the realised metric by event-time window, corrected as labels arrive, oldest first;
        `?since=`, `?until=` (ISO 8601) and `?version=` narrow it."""
        name, asked = await self._known(request), request.query_params
        since, until = (
            parse_time(asked[key], field=key) if key in asked else None
            for key in ("since", "until")
        )
        found = await run_in_threadpool(
            scores.listed,
            self.ledger, name, since=since, until=until, version=asked.get("version"),
        )  # fmt: skip
        rows = [
            {**msgspec.to_builtins(each), "coverage": each.coverage, "scored": iso(scored)}
            for each, scored in found
        ]
        return _json({"model": name, "windows": rows})

    async def incidents(self, request: Request) -> Response:
        """GET incidents, newest first; `?model=` and `?state=` narrow them."""
        return _json({"incidents": await self._listed(schema.incidents, request)})

    async def runs(self, request: Request) -> Response:
        """GET retraining runs, newest first; `?model=` and `?state=` narrow them."""
        return _json({"runs": await self._listed(schema.runs, request, order="started")})

    async def health(self, request: Request) -> Response:
        """GET whether this process can do its work: the ledger answers."""
        try:
            await self._rows(sa.select(schema.meta))
        except sa.exc.SQLAlchemyError as error:
            return _json({"status": "failing", "ledger": type(error).__name__}, status=503)
        return _json({"status": "ok", "at": iso(wall_clock())})

    async def metrics(self, request: Request) -> Response:
        """GET Prometheus metrics."""
        text = await run_in_threadpool(metrics.render, self.ledger, self.snapshot())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _listed(
        self, table: sa.Table, request: Request, order: str = "id"
    ) -> list[dict[str, Any]]:
        query = sa.select(table).order_by(table.c[order].desc()).limit(200)
        for name in ("model", "state"):
            if name in request.query_params:
                query = query.where(table.c[name] == request.query_params[name])
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
            with self.ledger.read() as tx:
                return [dict(row._mapping) for row in tx.execute(query)]

        return await run_in_threadpool(fetch)

    async def _known(self, request: Request) -> str:
        name = str(request.path_params["model"])
        if name not in self._models:
            self._models = await run_in_threadpool(self._names)
        if name not in self._models:
            raise NotFound("model", name, f"known models: {sorted(self._models)}")
        return name

    def _names(self) -> set[str]:
        with self.ledger.read() as tx:
            return set(tx.scalars(sa.select(schema.promotions.c.model).distinct()))

    async def _body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.limit:
            raise TooLarge("body", f"{declared} bytes", f"at most {self.limit} bytes")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.limit:
                raise TooLarge("body", f"over {self.limit} bytes", f"at most {self.limit} bytes")
        return bytes(body)


def _decode(kind: type[Any], raw: bytes) -> Any:
    try:
        value = msgspec.json.decode(raw)
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), value) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError("body", raw[:60], f"valid JSON ({error})") from None


_MISSING = re.compile(r"Object missing required field `(.+?)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`")


def _misfit(message: str, value: Any) -> InputError:
    """msgspec's complaint as field, value and what was expected."""
    what, _, where = message.partition(" - at `")
    field = where.strip("`$.")
    inner = f"{field}." if field else ""
    if missing := _MISSING.match(what):
        return InputError(f"{inner}{missing[1]}", None, "a value (the field is required)")
    if unknown := _UNKNOWN.match(what):
        return InputError(f"{inner}{unknown[1]}", "a field of that name", "no such field")
    for part in re.findall(r"[^.\[\]]+", field):
        value = value[int(part)] if part.isdigit() else value[part]
    return InputError(field or "body", value, what.removeprefix("Expected ").replace("`", ""))


def _label(model: str, index: int, each: LabelIn, now: datetime) -> Label:
    if not each.id or len(each.id) > _MAX_ID:
        raise InputError(f"labels[{index}].id", each.id, f"1 to {_MAX_ID} characters")
    moment = parse_time(each.time, field=f"labels[{index}].time") if each.time else now
    return Label(model=model, id=each.id, value=each.label, time=moment, source="api")


def _json(value: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _refused(status: int, error: ShelflifeError) -> JSONResponse:
    body: dict[str, Any] = {"error": str(error)}
    if isinstance(error, InputError):
        body |= {"field": error.field, "expected": error.expected}
    return JSONResponse(body, status_code=status)
