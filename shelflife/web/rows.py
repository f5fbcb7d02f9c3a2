"""Rows as they came become rows of the log; a bad row never takes the others with it.

Values are checked column by column (`serving.columns`); only a column that does not pass is looked
at row by row. The clock is an argument.
"""

from __future__ import annotations

import difflib
import hashlib
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec import UNSET, Struct

from core.errors import InputError, shown
from core.spec import ModelSpec, Scalar
from core.times import micros
from monitor.log.records import Prediction
from serving.columns import DATATYPE, column, plain
from shelflife.web.limits import (
    MAX_SOURCE,
    MAX_VERSION,
    Refused,
    identifier,
    moment,
    problem,
)
from shelflife.web.outputs import columnwise, mapped
from shelflife.web.wire import PredictionIn, Problem, text

_encode = msgspec.json.Encoder(order="deterministic").encode
Numbered = tuple[int, PredictionIn]  # position in the body, row


class Promotions(Struct, frozen=True, kw_only=True):
    """Which version was the champion when, oldest first."""

    times: tuple[datetime, ...] = ()
    versions: tuple[str, ...] = ()

    def at(self, moment: datetime) -> str:
        """The champion of a moment; `external` before there was one."""
        found = bisect_right(self.times, moment)
        return self.versions[found - 1] if found else "external"


class Context(Struct, frozen=True, kw_only=True):
    """What rows are judged by."""

    spec: ModelSpec
    promotions: Promotions
    now: datetime
    future: timedelta
    source: str = "api"  # of rows that name none
    key: str = ""  # of the request, so that a repeat derives the same ids


class Assembled(Struct, frozen=True, kw_only=True):
    """Rows for the log, what was refused, and the ids by position where some were derived."""

    rows: list[Prediction]
    problems: list[Problem]
    ids: dict[int, str]
    derived: bool


def assemble(given: Sequence[Numbered], context: Context, *, at: str = "predictions") -> Assembled:
    """Check rows and make them rows of the log.

    Args:
        at: the name of the list in the body, for messages: `predictions[3].inputs.age`.
    """
    problems: dict[int, Problem] = {}
    for position, row in given:
        try:
            _same_columns(context.spec, row.inputs)
        except InputError as error:
            problems[position] = problem(position, error, at=f"{at}[{position}]")
    good = [each for each in given if each[0] not in problems]
    inputs = _inputs(context.spec, good, problems, at)
    outputs = columnwise(context.spec, [row.outputs for _, row in good])
    maker = _Maker(context)
    rows, ids, derived = list[Prediction](), dict[int, str](), False
    for i, (position, row) in enumerate(good):
        if position in problems:
            continue
        try:
            answered = outputs[i] if outputs else mapped(context.spec, row.outputs)
            made, is_derived = maker.make(position, row, inputs[i], answered)
        except InputError as error:
            problems[position] = problem(position, error, at=f"{at}[{position}]")
            continue
        rows.append(made)
        ids[position] = made.id
        derived |= is_derived
    return Assembled(rows=rows, problems=list(problems.values()), ids=ids, derived=derived)


def _same_columns(spec: ModelSpec, inputs: dict[str, Scalar]) -> None:
    known = {feature.name for feature in spec.features}
    if inputs.keys() == known:
        return
    for name in inputs:
        if name not in known:
            near = difflib.get_close_matches(name[:MAX_SOURCE], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            expected = f"a column of the model {shown(spec.columns)}{hint}"
            raise Refused("unknown_column", "inputs", name, expected)
    missing = next(f for f in spec.features if f.name not in inputs)
    expected = f"a value for {missing.name!r} ({missing.kind}); it is missing"
    raise Refused("missing_column", f"inputs.{missing.name}", None, expected)


def _inputs(
    spec: ModelSpec, good: Sequence[Numbered], problems: dict[int, Problem], at: str
) -> list[dict[str, Scalar]]:
    """The checked inputs of each row; rows with a bad value are added to the problems."""
    if not good:
        return []
    columns: list[list[Scalar]] = []
    for feature in spec.features:
        name, datatype = feature.name, DATATYPE[feature.kind]
        values = [row.inputs[name] for _, row in good]
        try:
            columns.append(plain(column(feature, datatype, values)))
        except InputError:
            for (position, _), value in zip(good, values, strict=True):
                try:
                    column(feature, datatype, [value])
                except InputError as error:
                    field = f"inputs.{error.field}"
                    refused = Refused("value", field, error.value, error.expected)
                    problems.setdefault(
                        position, problem(position, refused, at=f"{at}[{position}]")
                    )
            columns.append(values)  # its good values are plain ones already
    names = spec.columns
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class _Maker:
    """Makes rows of the log of one request: what its rows have in common is worked out once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._repeats: Counter[bytes] = Counter()
        self._times: dict[str, tuple[datetime, str]] = {"": self._dated(context.now)}
        self._sources: dict[str, str] = {}

    def make(
        self,
        position: int,
        row: PredictionIn,
        inputs: dict[str, Scalar],
        outputs: dict[str, float],
    ) -> tuple[Prediction, bool]:
        """The row, and whether its id had to be derived.

        Raises:
            Refused: an id, time, source or version that cannot be.
        """
        time, champion = self._time(text(row.time))
        version, event = text(row.version), text(row.event_id)
        if event:
            identifier(event, "event_id")
        identity = text(row.id) or event
        derived = not identity
        if derived:
            identity = self._derived(position, row, time)
        elif identity is not event:
            identifier(identity, "id")
        made = Prediction(
            model=self._context.spec.name,
            id=identity,
            version=identifier(version, "version", MAX_VERSION) if version else champion,
            time=time,
            inputs=inputs,
            outputs=outputs,
            role="champion" if row.role is UNSET else row.role,
            source=self._source(text(row.source)),
            event_id=event,
        )
        return made, derived

    def _dated(self, moment: datetime) -> tuple[datetime, str]:
        return moment, self._context.promotions.at(moment)

    def _time(self, given: str) -> tuple[datetime, str]:
        found = self._times.get(given)
        if found is None:
            found = self._dated(moment(given, "time", self._context.now, self._context.future))
            self._times[given] = found
        return found

    def _source(self, given: str) -> str:
        found = self._sources.get(given)
        if found is None:
            source = identifier(given or self._context.source, "source", MAX_SOURCE)
            # Callers number their rows per model; two models may well use one id.
            found = self._sources[given] = f"{source}/{self._context.spec.name}"
        return found

    def _derived(self, position: int, row: PredictionIn, time: datetime) -> str:
        """An id for a row without one.

        With an idempotency key it is the key's, with a time it is the content's, so that the same
        request sent again is a duplicate. With neither it is new each time: two customers may ask
        the same, and losing one of them would be worse than keeping a repeat.
        """
        context = self._context
        if context.key:
            return _digest(context.key.encode(), str(position).encode())
        if not text(row.time):
            return uuid.uuid4().hex
        content = _encode([context.spec.name, text(row.source), text(row.version), micros(time)])
        content += _encode([row.inputs, row.outputs])
        self._repeats[content] += 1
        return _digest(content, str(self._repeats[content]).encode())


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()
