"""Incidents and silences over HTTP: see, acknowledge, silence, resolve, send again.

Nothing here needs MLflow, so that it is done at once and not left to the scheduler. Whoever changes
something is named, with a reason; both are on the incident's timeline.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import Settings
from core.times import parse_time
from monitor.alert import silences
from shelflife import oncall
from shelflife.web.edge import Bodies, answer, decode
from shelflife.web.gatekeeper import assert_ours, assert_signed, caller
from shelflife.web.wire import IncidentActionIn, SilenceEndIn, SilenceIn

ACTIONS = ("acknowledge", "replay", "resolve", "silence")


def _signed(request: Request, body: Any, raw: bytes) -> Any:
    """The body in the name of whoever the gatekeeper recognised, whatever name it gives.

    Raises:
        InputError: it comes from a page of another site, or is not what the dashboard signed.
    """
    assert_ours(request.scope)
    assert_signed(request.scope, raw)
    identity = caller(request.scope)
    return body if identity is None else msgspec.structs.replace(body, by=identity.name)


class OnCall:
    """Handlers over a ledger.

    Args:
        clock: wall clock.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        bodies: Bodies,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings, self._ledger = settings, ledger
        self._bodies, self._clock = bodies, clock

    async def incident(self, request: Request) -> Response:
        """One incident with its timeline and its messages."""
        number = _number(request, "incident")
        return answer(await run_in_threadpool(oncall.detail, self._ledger, number))

    async def act(self, request: Request) -> Response:
        """Acknowledge, silence, resolve, or send again what could not be delivered."""
        number, action = _number(request, "incident"), str(request.path_params["action"])
        if action not in ACTIONS:
            raise InputError("action", action, f"one of {', '.join(ACTIONS)}")
        async with self._bodies.read(request) as raw:
            body: IncidentActionIn = _signed(request, decode(IncidentActionIn, raw or b"{}"), raw)
        for name in ("by", "reason", "until", "receiver"):
            _plain(name, getattr(body, name))
        return answer(await run_in_threadpool(self._act, number, action, body))

    async def all_silences(self, request: Request) -> Response:
        """Both methods of one path: two routes would each deny the other's in `Allow`."""
        method = self.silence if request.method == "POST" else self.silences
        return await method(request)

    async def silences(self, request: Request) -> Response:
        """Silences that are not over, newest first; all of them with `all=true`."""
        every = request.query_params.get("all", "false")
        if every not in ("true", "false"):
            raise InputError("all", every, "true or false")
        rows = await run_in_threadpool(
            oncall.silence_rows, self._ledger, now=self._clock(), every=every == "true"
        )
        return answer({"silences": rows})

    async def silence(self, request: Request) -> Response:
        """Ask not to hear of incidents whose labels match."""
        async with self._bodies.read(request) as raw:
            body: SilenceIn = _signed(request, decode(SilenceIn, raw), raw)
        for name in ("by", "reason", "until"):
            _plain(name, getattr(body, name))
        for text in body.match:
            _plain("match", text)
        return answer(await run_in_threadpool(self._silence, body), status=201)

    async def end(self, request: Request) -> Response:
        """End a silence before its time."""
        number = _number(request, "silence")
        async with self._bodies.read(request) as raw:
            body: SilenceEndIn = _signed(request, decode(SilenceEndIn, raw), raw)
        _plain("by", body.by)
        return answer(await run_in_threadpool(self._end, number, body.by))

    async def runbook(self, request: Request) -> Response:
        """What to do about a cause, as Markdown."""
        text = await run_in_threadpool(oncall.runbook, str(request.path_params["cause"]))
        return PlainTextResponse(text, media_type="text/markdown; charset=utf-8")

    def _act(self, number: int, action: str, body: IncidentActionIn) -> dict[str, Any]:
        now, ledger = self._clock(), self._ledger
        if action == "acknowledge":
            oncall.acknowledge(
                ledger, number, by=body.by, at=now, reason=body.reason, settings=self._settings
            )
        elif action == "resolve":
            oncall.resolve(ledger, self._settings, number, by=body.by, reason=body.reason, at=now)
        elif action == "silence":
            ends = oncall.until(body.until, now)
            oncall.silence(ledger, number, by=body.by, reason=body.reason, ends=ends, at=now)
        else:
            oncall.named(body.by)
            oncall.replay(ledger, number, receiver=body.receiver or None)
        return oncall.detail(ledger, number)

    def _silence(self, body: SilenceIn) -> oncall.SilenceRow:
        now = self._clock()
        starts = parse_time(body.starts, field="starts") if body.starts else now
        with self._ledger.write() as tx:
            added = silences.add(
                tx, match=body.match, by=body.by, reason=body.reason,
                ends=oncall.until(body.until, starts), at=now, starts=starts,
            )  # fmt: skip
        return oncall.shown(added, now)

    def _end(self, number: int, by: str) -> oncall.SilenceRow:
        now = self._clock()
        with self._ledger.write() as tx:
            ended = silences.end(tx, number, by=oncall.named(by), at=now)
        return oncall.shown(ended, now)


def _number(request: Request, kind: str) -> int:
    given = str(request.path_params["id"])
    if not (given.isascii() and given.isdigit()) or len(given) > 18:
        raise NotFound(kind, given)
    return int(given)


def _plain(field: str, text: str) -> None:
    if "\0" in text:
        raise InputError(field, text, "text without NUL")


def paths() -> dict[str, Any]:
    """These operations in the OpenAPI document."""
    from shelflife.web.document import operation, path_parameter, ref, said

    number = path_parameter("id", "Its number.", pattern="^[0-9]{1,18}$")
    action = path_parameter("action", "What to do.", enum=sorted(ACTIONS))
    every = {
        "name": "all", "in": "query", "description": "Those that are over, too.",
        "schema": {"type": "boolean", "default": False},
    }  # fmt: skip
    listed = {
        "type": "object", "required": ["silences"],
        "properties": {"silences": {"type": "array", "items": ref("SilenceRow")}},
    }  # fmt: skip
    detail = {
        "allOf": [ref("Incident")], "required": ["events", "messages"],
        "properties": {
            "events": {"type": "array", "items": {"type": "object"}},
            "messages": {"type": "array", "items": {"type": "object"}},
        },
    }  # fmt: skip

    def body(name: str, *, required: bool = True) -> dict[str, Any]:
        return {"required": required, "content": {"application/json": {"schema": ref(name)}}}

    refusals = (400, 404, 408, 413, 415, 503)
    return {
        "/api/v1/incidents/{id}": {
            "parameters": [number],
            "get": operation(
                "One incident, its timeline and its messages",
                {200: said("The incident.", detail)}, 404, 503,
            ),
        },
        "/api/v1/incidents/{id}/{action}": {
            "parameters": [number, action],
            "post": operation(
                "Acknowledge, silence, resolve an incident, or send its failed messages again",
                {200: said("The incident as it is now.", detail)}, *refusals,
                requestBody=body("IncidentActionIn"),
            ),
        },
        "/api/v1/silences": {
            "get": operation(
                "What nobody wants to hear of", {200: said("Newest first.", listed)}, 400, 503,
                parameters=[every],
            ),
            "post": operation(
                "Ask not to hear of incidents whose labels match",
                {201: said("The silence.", ref("SilenceRow"))}, 400, 408, 413, 415, 503,
                requestBody=body("SilenceIn"),
            ),
        },
        "/api/v1/silences/{id}/end": {
            "parameters": [number],
            "post": operation(
                "End a silence before its time",
                {200: said("The silence.", ref("SilenceRow"))}, *refusals,
                requestBody=body("SilenceEndIn"),
            ),
        },
        "/runbooks/{cause}": {
            "parameters": [path_parameter("cause", "Of an incident.", pattern="^[a-z_]{1,64}$")],
            "get": operation(
                "What to do about it",
                {200: said("Markdown.", {"type": "string"}, "text/markdown")}, 404, 503,
            ),
        },
    }  # fmt: skip


COMPONENTS = (IncidentActionIn, SilenceIn, SilenceEndIn, oncall.SilenceRow)
