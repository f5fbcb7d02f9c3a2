"""`POST /api/v1/models/{model}/predictions` and `/labels`: JSON, NDJSON, Arrow IPC.

What was answered with 200 and not refused is committed. One request is one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from core.errors import InputError, TooLarge, TooSlow, Unsupported
from core.settings import Settings
from monitor.log.records import Label, LabelReceipt, Prediction, SampleLog
from monitor.log.sample import kept
from shelflife.web import arrowrows, jsonrows, rows
from shelflife.web.edge import Bodies, answer, media_type
from shelflife.web.limits import (
    MAX_LABEL,
    MAX_SOURCE,
    Limits,
    Refused,
    by_reason,
    first,
    identifier,
    moment,
    problem,
)
from shelflife.web.specs import Specs
from shelflife.web.wire import (
    LabelIn,
    Nothing,
    PredictionIn,
    PredictionsOut,
    Problem,
    text,
)

Count = Callable[[str, str, int], None]  # model, name, by
ARROW = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_JSON = ("application/json", "")
_KEY = "idempotency-key"


class Ingest:
    """The two endpoints over a log.

    Args:
        count: adds to a counter, which `/metrics` shows.
        clock: wall clock.
    """

    def __init__(
        self,
        settings: Settings,
        specs: Specs,
        log: SampleLog,
        bodies: Bodies,
        *,
        count: Count,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings, self._specs, self._log, self._bodies = settings, specs, log, bodies
        self._limits, self._count, self._clock = bodies.limits, count, clock

    async def predictions(self, request: Request) -> Response:
        """Log rows that were answered elsewhere."""
        model = await run_in_threadpool(self._specs.name, str(request.path_params["model"]))
        atomic, key = _atomic(request), _idempotency(request)
        media = media_type(request)
        async with counted(self._count, model), self._bodies.read(request) as body:
            out = await run_in_threadpool(self._keep, model, media, body, atomic, key)
        return answer(out, status=400 if isinstance(out, Nothing) else 200)

    def _keep(
        self, model: str, media: str, body: bytes, atomic: bool, key: str
    ) -> PredictionsOut | Nothing:
        now = self._clock()
        context = rows.Context(
            spec=self._specs.spec(model),
            promotions=self._specs.promotions(model),
            now=now,
            future=self._limits.future,
            key=key,
        )
        given, problems = read_rows(body, media, PredictionIn, self._limits)
        made = rows.assemble(given, context)
        problems += made.problems
        received = len(given) + len(problems) - len(made.problems)
        if refusal := self._refusal(model, received, problems, atomic):
            return refusal
        new, duplicate, unsampled = append(self._log, self._settings, model, made.rows, now)
        for name, by in (("new", new), ("duplicate", duplicate), ("unsampled", unsampled)):
            self._count(model, f"ingest:{name}", by)
        ids = tuple(made.ids.get(i) for i in range(received)) if made.derived else UNSET
        return PredictionsOut(
            received=received,
            new=new,
            duplicate=duplicate,
            unsampled=unsampled,
            refused=len(problems),
            problems=first(problems),
            ids=ids,
        )

    async def labels(self, request: Request) -> Response:
        """Log what turned out true."""
        model = await run_in_threadpool(self._specs.name, str(request.path_params["model"]))
        atomic, media = _atomic(request), media_type(request)
        async with counted(self._count, model), self._bodies.read(request) as body:
            out = await run_in_threadpool(self._keep_labels, model, media, body, atomic)
        return answer(out, status=400 if isinstance(out, Nothing) else 200)

    def _keep_labels(
        self, model: str, media: str, body: bytes, atomic: bool
    ) -> dict[str, Any] | Nothing:
        now = self._clock()
        given, problems = read_rows(body, media, LabelIn, self._limits)
        received, found = len(given) + len(problems), list[Label]()
        for position, each in given:
            try:
                found.append(_label(model, each, now, self._limits))
            except InputError as error:
                problems.append(problem(position, error, at=f"labels[{position}]"))
        if refusal := self._refusal(model, received, problems, atomic):
            return refusal
        receipt = self._log.append_labels(found, received=now)
        self._count(model, "ingest:labels", len(found))
        return _labels_out(received, receipt, problems)

    def _refusal(
        self, model: str, received: int, problems: Sequence[Problem], atomic: bool
    ) -> Nothing | None:
        """Counts what is refused; all of the request where nothing is left of it, or if asked."""
        if not problems:
            return None
        for reason, by in by_reason(problems).items():
            self._count(model, f"ingest_refused:{reason}", by)
        if len(problems) < received and not atomic:
            return None
        listed = first(problems)
        bad = InputError(listed[0].field, listed[0].value, listed[0].expected)
        return Nothing(
            error=f"nothing was written; {bad}",
            field=bad.field,
            value=listed[0].value,
            expected=bad.expected,
            received=received,
            refused=len(problems),
            problems=listed,
        )


_REASONS = {TooLarge: "too_large", TooSlow: "too_slow", Unsupported: "unsupported"}


@asynccontextmanager
async def counted(count: Count, model: str) -> AsyncIterator[None]:
    """Counts a request that is refused as a whole, by reason."""
    try:
        yield
    except InputError as error:
        reason = _REASONS.get(type(error), "value")
        reason = error.reason if isinstance(error, Refused) else reason
        count(model, f"ingest_refused:{reason}", 1)
        raise


def read_rows(
    body: bytes, media: str, kind: type[Any], limits: Limits
) -> tuple[list[tuple[int, Any]], list[Problem]]:
    """The rows of a body in any of the formats.

    Raises:
        InputError: a body that cannot be read at all.
        Unsupported: another media type.
    """
    if media in _JSON:
        return jsonrows.rows(body, kind, limits.rows)
    if media in NDJSON:
        return jsonrows.lines(body, kind, limits.rows)
    if media in ARROW:
        return arrowrows.rows(body, kind, limits)
    expected = ", ".join(("application/json", NDJSON[0], *ARROW))
    raise Unsupported("Content-Type", media, expected)


def append(
    log: SampleLog, settings: Settings, model: str, made: Sequence[Prediction], now: datetime
) -> tuple[int, int, int]:
    """Offer rows to the log, which keeps its sample of them and counts what it was offered.

    Returns how many were new, duplicates and unsampled.
    """
    rate = settings.model(model).sample_rate
    inside = sum(kept(row.id, rate) for row in made)
    new = log.append(made, received=now)
    return new, inside - new, len(made) - inside


def _label(model: str, each: LabelIn, now: datetime, limits: Limits) -> Label:
    given, value = text(each.time), each.label
    if isinstance(value, str) and len(value) > MAX_LABEL:
        raise Refused("too_long", "label", value, f"at most {MAX_LABEL} characters")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise Refused("value", "label", value, "a number within 64 bits")
    return Label(
        model=model,
        id=identifier(each.id, "id"),
        value=value,
        time=moment(given, "time", now, limits.future) if given else now,
        source=identifier(text(each.source) or "api", "source", MAX_SOURCE),
    )


def _labels_out(
    received: int, receipt: LabelReceipt, problems: Sequence[Problem]
) -> dict[str, Any]:
    return {
        "received": received,
        **msgspec.to_builtins(receipt),
        "refused": len(problems),
        "problems": first(problems),
    }


def _atomic(request: Request) -> bool:
    """Whether one bad row is to refuse all: `?atomic=true`, or a preference for strict handling.

    Source: RFC 7240 section 4.4.
    """
    given = request.query_params.get("atomic", "false")
    if given not in ("true", "false"):
        raise InputError("atomic", given, "true or false")
    return given == "true" or "handling=strict" in request.headers.get("prefer", "").lower()


def _idempotency(request: Request) -> str:
    given = request.headers.get(_KEY, "")
    return identifier(given, "Idempotency-Key") if given else ""
