"""CloudEvents of KServe's inference logger: `POST /api/v1/cloudevents` and, where the address says
the model, `/api/v1/models/{model}/cloudevents`.

The logger sends each event once from a memory queue and does not try again, so half a pair may
never come; `shelflife.web.pairs` keeps halves over a restart and counts what is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from core.errors import InputError, NotFound, NotReady, ShelflifeError
from core.ledger import Ledger
from core.settings import Settings
from core.times import iso
from monitor.log.records import Prediction, SampleLog
from shelflife.web import events, payloads, rows
from shelflife.web.edge import Bodies, answer, media_type
from shelflife.web.events import Event
from shelflife.web.ingest import Count, append, counted
from shelflife.web.jsonrows import strict
from shelflife.web.limits import (
    MAX_VERSION,
    Refused,
    by_reason,
    first,
    identifier,
    moment,
    problem,
)
from shelflife.web.pairs import Half, Key, Pair, Pairs
from shelflife.web.specs import Specs
from shelflife.web.wire import EventsOut, Nothing, Problem

_log = logging.getLogger("shelflife.web")
_SWEEP_EVERY = 60.0  # seconds, at most


class Result:
    """What completing some pairs did."""

    def __init__(self) -> None:
        self.ended: list[tuple[Key, str]] = []
        self.problems: dict[Key, Problem] = {}
        self.new = self.unsampled = 0


class Events:
    """The endpoint over the table of halves and the log."""

    def __init__(
        self,
        settings: Settings,
        specs: Specs,
        ledger: Ledger,
        log: SampleLog,
        bodies: Bodies,
        *,
        count: Count,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings, self._specs, self._ledger, self._log = settings, specs, ledger, log
        self._bodies, self._limits, self._count, self._clock = bodies, bodies.limits, count, clock
        self.pairs = Pairs(ledger)

    async def receive(self, request: Request) -> Response:
        """Keep events, and log the pairs they complete."""
        named = str(request.path_params.get("model", ""))
        if named:
            await run_in_threadpool(self._specs.name, named)
        version = request.query_params.get("version", "")
        if version:
            identifier(version, "version", MAX_VERSION)
        media, headers = media_type(request), dict(request.headers)
        async with counted(self._count, named), self._bodies.read(request) as body:
            found, problems = events.read(headers, media, body, self._limits.rows)
            out = await run_in_threadpool(self._keep, named, version, found, problems)
        return answer(out, status=400 if isinstance(out, Nothing) else 200)

    def _keep(
        self,
        named: str,
        version: str,
        found: Sequence[tuple[int, Event]],
        problems: list[Problem],
    ) -> EventsOut | Nothing:
        now, received = self._clock(), len(found) + len(problems)
        halves, positions = list[Half](), dict[Key, int]()
        for position, event in found:
            try:
                half = self._half(named, version, event, now)
            except InputError as error:
                problems.append(problem(position, error, at=f"events[{position}]"))
                continue
            halves.append(half)
            positions[half.key] = position
        kept = self.pairs.keep(halves)
        result = self._complete(self.pairs.complete(keys=positions), now)
        problems += self._told(result, positions)
        for reason, by in by_reason(problems).items():
            self._count(named or _model(halves), f"ingest_refused:{reason}", by)
        refused, ended = len(problems) + kept.late, {key for key, _ in result.ended}
        if problems and refused >= received and not result.new:
            return _nothing(received, problems)
        return EventsOut(
            received=received,
            paired=sum(state == "paired" for _, state in result.ended),
            waiting=sum(key not in ended for key, _ in kept.new),
            duplicate=kept.duplicate,
            refused=refused,
            new=result.new,
            unsampled=result.unsampled,
            problems=first(problems),
        )

    def _half(self, named: str, version: str, event: Event, now: datetime) -> Half:
        model = named or event.model
        try:
            self._specs.name(model)
        except NotFound:
            expected = f"a model of this installation: {sorted(self._specs.names())}"
            raise Refused("model", "inferenceservicename", model, expected) from None
        given = event.time
        chosen = version or event.version
        return Half(
            model=model,
            source=event.source,
            event_id=event.id,
            part=event.part,
            body=event.data.decode(),
            version=identifier(chosen, "version", MAX_VERSION) if chosen else "",
            role="challenger" if event.endpoint == "canary" else "champion",
            time=moment(given, "time", now, self._limits.future) if given else now,
            received=now,
        )

    def _told(self, result: Result, positions: dict[Key, int]) -> list[Problem]:
        return [
            Problem(
                row=positions.get(key, 0),
                reason=bad.reason,
                field=bad.field,
                value=bad.value,
                expected=bad.expected,
            )
            for key, bad in result.problems.items()
        ]

    # --- pairs -----------------------------------------------------------------------------------

    def _complete(self, pairs: Sequence[Pair], now: datetime) -> Result:
        """Log the rows of pairs, then mark their halves."""
        result, made = Result(), dict[str, list[Prediction]]()
        contexts: dict[str, rows.Context] = {}
        for pair in pairs:
            model, key = pair.request.model, pair.request.key
            try:
                if model not in contexts:
                    contexts[model] = self._context(model, now)
                made.setdefault(model, []).extend(self._rows(pair, contexts[model]))
            except NotReady:
                continue  # both halves wait until the model is prepared
            except InputError as error:
                result.problems[key] = problem(0, error)
            result.ended.append((key, "refused" if key in result.problems else "paired"))
        totals: Counter[tuple[str, str]] = Counter()
        for model, found in made.items():
            new, duplicate, unsampled = append(self._log, self._settings, model, found, now)
            result.new += new
            result.unsampled += unsampled
            totals[model, "ingest:new"] += new
            totals[model, "ingest:duplicate"] += duplicate
            totals[model, "ingest:unsampled"] += unsampled
        for (model, state), n in self.pairs.settle(result.ended).items():
            totals[model, f"events:{state}"] += n
        for (model, name), by in totals.items():
            self._count(model, name, by)
        return result

    def _context(self, model: str, now: datetime) -> rows.Context:
        return rows.Context(
            spec=self._specs.spec(model),
            promotions=self._specs.promotions(model),
            now=now,
            future=self._limits.future,
        )

    def _rows(self, pair: Pair, context: rows.Context) -> list[Prediction]:
        """The rows of one pair; bad ones among them are noted, all bad ones refuse the pair."""
        asked, told = strict(pair.request.body.encode()), strict(pair.response.body.encode())
        request, half = pair.request, pair.response
        known = context.promotions.versions
        given = payloads.rows(
            context.spec,
            asked,
            told,
            event=request.event_id,
            most=self._limits.rows,
            source=request.source,
            version=request.version or half.version or payloads.version_of(told, known),
            time=iso(request.time),
            role=request.role if request.role != "champion" else half.role,
        )
        made = rows.assemble(list(enumerate(given)), context, at="rows")
        if made.problems and not made.rows:
            bad = made.problems[0]
            raise Refused(bad.reason, bad.field, bad.value, bad.expected)
        if made.problems:
            for reason, by in by_reason(made.problems).items():
                self._count(request.model, f"ingest_refused:{reason}", by)
        return made.rows

    # --- in the background -----------------------------------------------------------------------

    def sweep(self, now: datetime) -> int:
        """Complete what a crash left, give up what waited too long; returns the halves lost."""
        for model in self.pairs.waiting():
            self._complete(self.pairs.complete(model=model), now)
        within = self._limits.pair_within
        return self.pairs.give_up(now - within, now - 2 * within, self._ledger.count_in)

    async def sweeping(self) -> None:
        """Sweep now and then until cancelled."""
        pause = min(self._limits.pair_within.total_seconds() / 4, _SWEEP_EVERY)
        while True:
            try:
                await run_in_threadpool(self.sweep, self._clock())
            except Exception:  # a locked ledger, say: the next sweep does it
                _log.exception("sweep_failed")
            await asyncio.sleep(max(pause, 0.05))


def _nothing(received: int, problems: list[Problem]) -> Nothing:
    listed = first(problems)
    bad = listed[0]
    error: ShelflifeError = InputError(bad.field, bad.value, bad.expected)
    return Nothing(
        error=f"nothing was logged; {error}",
        field=bad.field,
        value=bad.value,
        expected=bad.expected,
        received=received,
        refused=len(problems),
        problems=listed,
    )


def _model(halves: Sequence[Any]) -> str:
    return halves[0].model if halves else ""
