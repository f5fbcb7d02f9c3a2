"""Batches of columns as rows and labels of the log; what cannot be one is named, never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from core.errors import InputError, shown
from core.spec import Feature, ModelSpec, Scalar
from core.times import EPOCH
from monitor.log.records import Label, Prediction
from shelflife.importing.mapping import Mapping
from shelflife.importing.sources import Columns

_MAX_ID = 256
_AHEAD = timedelta(days=1)  # how far a clock may be in the future
_OLDEST = datetime(1900, 1, 1, tzinfo=UTC)
Errors = dict[int, str]  # why a row of the batch cannot be used, by its index


class Converted(Struct, kw_only=True):
    """One batch taken apart."""

    predictions: list[Prediction]
    labels: list[Label]
    rejected: Errors  # rows that are left out
    bad_labels: Errors  # rows that are kept without their label


class Converter:
    """Turns batches of one source into rows and labels.

    Args:
        identity: of the source; with the row's number it is the id of rows that have none.
        received: moment of the import; times more than a day later are refused.
    """

    def __init__(
        self, mapping: Mapping, spec: ModelSpec | None, identity: str, received: datetime
    ) -> None:
        self._map, self._spec, self._received = mapping, spec, received
        self._prefix, self._zone = identity[:16], ZoneInfo(mapping.tz)
        self._features = {f.name: f for f in spec.features} if spec else {}
        origin = "history" if mapping.role == "history" else "import"
        self._source = f"{origin}/{mapping.model}"

    def convert(self, columns: Columns, start: int) -> Converted:
        """A batch whose first row is number `start` of the source."""
        mapping, errors = self._map, Errors()
        count = len(next(iter(columns.values())))
        if mapping.id is None:
            ids = [f"{self._prefix}-{start + i}" for i in range(count)]
        else:
            ids = _each(columns[mapping.id], _id, mapping.id, errors)
        times = self._times(columns, mapping.time, errors) if mapping.time else [None] * count
        rows = self._predictions(columns, ids, times, errors) if mapping.predictions else []
        bad_labels = Errors()
        said = self._labels(columns, ids, times, errors, bad_labels) if mapping.label else []
        if not mapping.predictions:
            errors, bad_labels = bad_labels | errors, {}
        return Converted(predictions=rows, labels=said, rejected=errors, bad_labels=bad_labels)

    def _times(self, columns: Columns, name: str, errors: Errors) -> list[Any]:
        latest = self._received + _AHEAD

        def moment(value: Any) -> datetime:
            found = to_moment(value, self._zone)
            if not _OLDEST <= found <= latest:
                raise ValueError("a time between 1900 and now")
            return found

        return _each(columns[name], moment, name, errors)

    def _predictions(
        self, columns: Columns, ids: list[str], times: list[Any], errors: Errors
    ) -> list[Prediction]:
        mapping = self._map
        inputs = [
            columns[column]
            if _fits(self._features.get(name), columns[column])
            else _each(columns[column], self._input(name), column, errors)
            for name, column in mapping.inputs.items()
        ]
        outputs = [
            _each(columns[column], self._output(), column, errors)
            for column in mapping.outputs.values()
        ]
        names, answers = list(mapping.inputs), list(mapping.outputs)
        versions = columns[mapping.version_column] if mapping.version_column else None
        asked = zip(*inputs, strict=True) if inputs else [()] * len(ids)
        said = zip(*outputs, strict=True) if outputs else [()] * len(ids)
        return [
            Prediction(
                model=mapping.model,
                id=ids[i],
                version=mapping.version if versions is None else _text(versions[i]) or "unknown",
                time=times[i],
                inputs=dict(zip(names, asks, strict=True)),
                outputs={} if None in says else dict(zip(answers, says, strict=True)),
                role=mapping.role,
                source=self._source,
            )
            for i, (asks, says) in enumerate(zip(asked, said, strict=True))
            if i not in errors
        ]

    def _input(self, name: str) -> Callable[[Any], Scalar]:
        feature = self._features.get(name)
        return _free if feature is None else lambda value: _feature(feature, value)

    def _output(self) -> Callable[[Any], float | None]:
        probability = self._spec is not None and self._spec.task != "regression"
        needed = self._map.role != "history"

        def output(value: Any) -> float | None:
            if _missing(value):
                if needed:
                    raise ValueError("what the model answered")
                return None
            found = _number(value)
            if probability and not 0.0 <= found <= 1.0:
                raise ValueError("a probability, 0 to 1")
            return found

        return output

    def _labels(
        self, columns: Columns, ids: list[str], times: list[Any], errors: Errors, bad: Errors
    ) -> list[Label]:
        mapping = self._map
        assert mapping.label is not None  # noqa: S101
        values = _each(columns[mapping.label], self._truth, mapping.label, bad)
        if mapping.label_time:
            known = self._label_times(columns[mapping.label_time], values, bad)
        else:
            known = [None] * len(ids)
        delay = timedelta(seconds=mapping.label_delay)
        return [
            Label(
                model=mapping.model,
                id=ids[i],
                value=value,
                time=known[i] or (times[i] + delay if times[i] else self._received),
                source="import",
            )
            for i, value in enumerate(values)
            if value is not None and i not in errors and i not in bad
        ]

    def _label_times(self, given: list[Any], values: list[Any], bad: Errors) -> list[Any]:
        latest, name = self._received + _AHEAD, self._map.label_time or ""

        def moment(value: Any) -> datetime | None:
            if _missing(value):
                return None
            found = to_moment(value, self._zone)
            if not _OLDEST <= found <= latest:
                raise ValueError("a time between 1900 and now")
            return found

        wanted = [
            None if value is None else each for each, value in zip(given, values, strict=True)
        ]
        return _each(wanted, moment, name, bad)

    def _truth(self, value: Any) -> Scalar:
        """A label as the model's spec takes it; None where there is none yet."""
        if _missing(value):
            return None
        found = _free(value)
        if self._spec is None:
            return found
        # Classes may be spelled like numbers ("01"), and integers beside missing values are floats.
        others: list[Scalar] = [value] if isinstance(value, str) else []
        if isinstance(found, float) and found.is_integer():
            others.append(int(found))
        for other in others:
            try:
                self._spec.encode_label(other)
                return other
            except InputError:
                continue
        self._spec.encode_label(found)
        return found


def _fits(feature: Feature | None, values: list[Any]) -> bool:
    """Whether a whole column can be logged as it is: much quicker than value by value."""
    kinds = set(map(type, values))
    if feature is None:
        return kinds <= {int, bool} or (kinds == {float} and all(map(math.isfinite, values)))
    if feature.kind == "numeric":
        return kinds == {float} and all(map(math.isfinite, values))
    if feature.kind == "integer":
        return kinds == {int} and max(map(abs, values)) < 2**63
    if feature.kind == "boolean":
        return kinds == {bool}
    return kinds == {str} and all(map(str.isascii, values))


def _each(
    values: Sequence[Any], convert: Callable[[Any], Any], column: str, errors: Errors
) -> list[Any]:
    """Every value converted; None and a reason where that fails."""
    try:
        return [convert(value) for value in values]
    except (ValueError, InputError, OverflowError):
        pass  # some are bad: find out which
    found = []
    for index, value in enumerate(values):
        try:
            found.append(convert(value))
        except InputError as error:
            errors.setdefault(index, f"{column}: {shown(value)}; expected {error.expected}")
            found.append(None)
        except (ValueError, OverflowError) as error:
            errors.setdefault(index, f"{column}: {shown(value)}; expected {error}")
            found.append(None)
    return found


def _missing(value: Any) -> bool:
    return value is None or value != value


def _id(value: Any) -> str:
    if _missing(value):
        raise ValueError("an id")
    text = _text(value)
    if not 0 < len(text) <= _MAX_ID:
        raise ValueError(f"an id of 1 to {_MAX_ID} characters")
    return text


def _text(value: Any) -> str:
    if _missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # an integer column with missing values
    text = value if isinstance(value, str) else str(value)
    if not text.isascii():
        text.encode()  # surrogates stand for bytes that are no text: UnicodeEncodeError
    return text


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError("a number")
    try:
        found = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(found):
        raise ValueError("a finite number")
    return found


def _feature(feature: Feature, value: Any) -> Scalar:
    """A value as the feature's kind; text from a CSV file and floats for integers are read."""
    kind = feature.kind
    if _missing(value):
        value = None
    elif kind == "categorical":
        value = _text(value)
    elif kind == "boolean" and not isinstance(value, bool):
        value = _boolean(value)
    elif isinstance(value, str | Decimal):
        value = _number(value)
    elif isinstance(value, bool):
        value = int(value)
    return feature.check(value)


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "t", "yes", "1", "1.0"):
        return True
    if text in ("false", "f", "no", "0", "0.0"):
        return False
    raise ValueError("true or false")


def _free(value: Any) -> Scalar:
    """A value of a column nobody described: numbers where it looks like one, text otherwise."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if value == value else None
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    text = _text(value) if isinstance(value, str) else str(value)
    if not text or text[0] not in "+-.0123456789":
        return text
    try:
        return int(text) if text.lstrip("+-").isdigit() and len(text) < 19 else float(text)
    except ValueError:
        return text


def to_moment(value: Any, zone: ZoneInfo) -> datetime:
    """A moment in UTC from a datetime, a date, ISO 8601 text or an epoch number.

    Epoch numbers are seconds, milli-, micro- or nanoseconds by their size. Naive times are of
    `zone`; one that a change of clocks skipped or repeated there is refused.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        value = _parsed(value.strip())
    if isinstance(value, datetime):
        return _aware(value, zone)
    if isinstance(value, date):
        return _aware(datetime(value.year, value.month, value.day), zone)  # noqa: DTZ001
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != value:
        raise ValueError("a date or time")
    size = abs(float(value))
    scale = 1e0 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9
    return EPOCH + timedelta(microseconds=round(float(value) * (1e6 / scale)))


def _parsed(text: str) -> Any:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError("an ISO 8601 time or an epoch number") from None


def _aware(moment: datetime, zone: ZoneInfo) -> datetime:
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    if zone.key == "UTC":
        return moment.replace(tzinfo=UTC)
    local = moment.replace(tzinfo=zone)
    if local.utcoffset() != local.replace(fold=1).utcoffset():
        raise ValueError(f"a time that exists once in {zone.key} (or one with its offset)")
    return local.astimezone(UTC)
