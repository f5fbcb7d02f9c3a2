"""What a candidate learns from, and the newest rows it is judged on.

All labelled rows that were known at one moment, in order of event time, cut at one timestamp: every
holdout row is strictly newer than every training row (rows that share the cut's timestamp are
held out), and newer than what the champion was trained on, so that neither model has seen them.

How much of the training slice a candidate learns from is settled later: the account proposes
windows (`retrain.windows`), and the trainer lets them compete. Rows that no model should learn from
are left out and counted by reason.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct, field

from core.errors import NotReady
from core.frames import to_frame
from core.settings import GateSettings, RetrainSettings
from core.spec import ModelSpec
from core.times import iso
from monitor.log.records import Role, SampleLog
from monitor.measure.performance import encode_labels, row_loss
from retrain.windows import Window, change_point, propose
from retrain.wording import plural

if TYPE_CHECKING:
    import pandas as pd

ROLES: tuple[Role, ...] = ("champion", "challenger", "history")


class TooLittle(NotReady):
    """There are not enough usable labelled rows to train and judge a candidate (yet)."""


class Slice(Struct, kw_only=True):
    """Rows in order of event time: inputs as the model takes them, and their encoded labels."""

    inputs: pd.DataFrame
    y: np.ndarray
    times: tuple[datetime, ...]
    ids: tuple[str, ...] = ()  # prediction ids, by which the slice can be made again

    def __len__(self) -> int:
        return len(self.y)


class Account(Struct, frozen=True, kw_only=True):
    """Where the rows came from and what was left out; kept with the run and the version."""

    identity: str  # sha256 over segment hashes and the id, time and label of every usable row
    segments: tuple[str, ...]  # sha256 of the sealed segments that were read, in order
    problems: tuple[str, ...]  # segments that do not match their hash, left out
    known_at: datetime
    train_rows: int
    holdout_rows: int
    new_rows: int  # usable rows newer than the champion's training data
    since: datetime  # oldest and newest training row
    trained_until: datetime
    holdout_since: datetime
    holdout_until: datetime
    label_low: float  # smallest and largest encoded label of all usable rows
    label_high: float
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> rows
    windows: tuple[Window, ...] = ()  # stretches of the training rows that compete
    change: datetime | None = None  # since when the served loss is clearly higher
    content: str = ""  # sha256 over the very values of both slices, for making them again
    source: str = ""  # where the rows came from; empty: the log


class Exclusions(Struct, frozen=True, kw_only=True):
    """Which rows no model should learn from, beyond those that are unusable by themselves."""

    broken: tuple[tuple[datetime, datetime], ...] = ()  # from < event time <= to: a broken feed
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # possible values


class Dataset(Struct, kw_only=True):
    """A training slice, the gate's slice, and the account of both."""

    train: Slice
    holdout: Slice
    account: Account


def assemble(
    log: SampleLog,
    spec: ModelSpec,
    settings: RetrainSettings,
    *,
    known_at: datetime,
    after: datetime | None = None,
    exclude: Exclusions | None = None,
) -> Dataset:
    """The labelled rows known at a moment, cut into training and holdout.

    Args:
        log: the inference log, or another `SampleLog` with a `read` (`retrain.source`).
        after: event time of the newest row the champion was trained on; only newer rows are held
            out, and at most half of them, so that the candidate has something new to learn.
        exclude: rows to leave out; None: only those that are unusable by themselves.

    Raises:
        TooLittle: not enough rows, or a class of the target that no training row has.
    """
    rows = log.read(spec.name, known_at=known_at, roles=ROLES, labelled=True)
    y, _ = encode_labels(spec, rows.meta["label"].tolist())
    left_out, keep = _usable(rows.meta, rows.inputs, spec, y, exclude or Exclusions())
    count = int(keep.sum())
    if not count:
        raise TooLittle(_explain(f"no usable labelled row is known at {iso(known_at)}", left_out))
    inputs = input_columns(spec, rows.inputs[keep])
    times = _datetimes(rows.meta["time"][keep])
    ids = [str(name) for name in rows.meta["id"][keep]]
    y = y[keep]
    new = count - bisect_right(times, after) if after else count
    cut = _cut(times, new, settings.gate, left_out)
    first = max(0, cut - settings.rows) if settings.rows else 0
    train = _slice(inputs, y, times, ids, first, cut)
    holdout = _slice(inputs, y, times, ids, cut, count)
    _check_training(spec, train, settings.gate, left_out)
    served = row_loss(spec, rows.outputs[keep].iloc[first:cut], train.y)
    change = change_point(served) if "since_change" in settings.windows else None
    history = int((rows.meta["role"][keep] == "history").to_numpy().sum())
    account = Account(
        identity=_identity(rows.segments, ids, times, y),
        segments=rows.segments,
        problems=rows.problems,
        known_at=known_at,
        train_rows=len(train),
        holdout_rows=len(holdout),
        new_rows=new,
        since=train.times[0],
        trained_until=train.times[-1],
        holdout_since=holdout.times[0],
        holdout_until=holdout.times[-1],
        label_low=float(y.min()),
        label_high=float(y.max()),
        left_out=left_out,
        windows=propose(
            train.times,
            settings.windows,
            recent_rows=settings.recent_rows or history,
            change=change,
            min_rows=settings.gate.min_rows,
        ),
        change=None if change is None else train.times[change],
        content=content(train, holdout),
        source=settings.source,
    )
    return Dataset(train=train, holdout=holdout, account=account)


def _usable(
    meta: pd.DataFrame,
    inputs: pd.DataFrame,
    spec: ModelSpec,
    y: np.ndarray,
    exclude: Exclusions,
) -> tuple[dict[str, int], np.ndarray]:
    """Which rows can be used, and how many cannot for which reason (the first that applies)."""
    known = [name for name in spec.columns if name in inputs.columns]
    reasons = {
        "bad label": np.isnan(y),
        "all inputs missing": inputs[known].isna().all(axis=1).to_numpy(bool),
        # The same prediction imported and served: once is enough, the newest stands.
        "repeated prediction id": meta["id"].duplicated(keep="last").to_numpy(bool),
        "broken feed": _within(meta["time"], exclude.broken),
        "impossible value": _impossible(inputs, exclude.ranges),
    }
    keep, left_out = np.ones(len(y), bool), dict[str, int]()
    for reason, bad in reasons.items():
        if count := int((keep & bad).sum()):
            left_out[reason] = count
        keep &= ~bad
    return left_out, keep


def _within(times: pd.Series, spans: Sequence[tuple[datetime, datetime]]) -> np.ndarray:
    inside = np.zeros(len(times), bool)
    for start, end in spans:
        inside |= ((times > start) & (times <= end)).to_numpy(bool)
    return inside


def _impossible(inputs: pd.DataFrame, ranges: dict[str, tuple[float, float]]) -> np.ndarray:
    """Rows with a number outside its column's possible range; a text there is no number."""
    import pandas as pd

    bad = np.zeros(len(inputs), bool)
    for name, (low, high) in ranges.items():
        if name in inputs.columns:
            values = pd.to_numeric(inputs[name], errors="coerce").to_numpy(np.float64)
            with np.errstate(invalid="ignore"):
                bad |= (values < low) | (values > high)
    return bad


def input_columns(spec: ModelSpec, logged: pd.DataFrame) -> pd.DataFrame:
    """Logged inputs as the model takes them; a column the log does not have is missing."""
    absent = [None] * len(logged)
    columns: dict[str, Sequence[Any]] = {
        name: logged[name].tolist() if name in logged.columns else absent for name in spec.columns
    }
    return to_frame(spec, columns)


def _cut(times: Sequence[datetime], new: int, gate: GateSettings, left_out: dict[str, int]) -> int:
    """Index of the first holdout row."""
    count = len(times)
    if new < gate.min_rows:
        text = f"{plural(new, 'usable labelled row')} newer than the champion's training data"
        raise TooLittle(_explain(f"{text}; the gate needs {gate.min_rows:,}", left_out))
    wanted = min(max(round(gate.holdout_share * count), gate.min_rows), gate.max_rows)
    held = max(gate.min_rows, min(wanted, new // 2))
    cut = count - held
    while cut > 0 and times[cut - 1] == times[cut]:  # ties go to the holdout
        cut -= 1
    return cut


def _check_training(
    spec: ModelSpec, train: Slice, gate: GateSettings, left_out: dict[str, int]
) -> None:
    if len(train) < gate.min_rows:
        text = f"{plural(len(train), 'row')} left to train on beside the holdout"
        raise TooLittle(_explain(f"{text}; at least {gate.min_rows:,} are needed", left_out))
    absent = [str(label) for i, label in enumerate(spec.classes) if not (train.y == i).any()]
    if absent:
        text = f"none of the {plural(len(train), 'training row')} has {spec.target}"
        raise TooLittle(f"{text} = {', '.join(absent)}; a model cannot learn a class it never saw")


def _explain(text: str, left_out: dict[str, int]) -> str:
    without = ", ".join(f"{count:,} with {reason}" for reason, count in left_out.items())
    return f"{text} (left out: {without})" if without else text


def _slice(
    inputs: pd.DataFrame,
    y: np.ndarray,
    times: Sequence[datetime],
    ids: Sequence[str],
    start: int,
    end: int,
) -> Slice:
    return Slice(
        inputs=inputs.iloc[start:end].reset_index(drop=True),
        y=y[start:end],
        times=tuple(times[start:end]),
        ids=tuple(ids[start:end]),
    )


def content(*parts: Slice) -> str:
    """One sha256 over the values of slices: inputs, labels, times and ids, in order."""
    import pandas as pd

    digest = hashlib.sha256()
    for part in parts:
        rows = part.inputs.reset_index(drop=True)
        digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
        digest.update(np.asarray(part.y, dtype=np.float64).tobytes())
        digest.update(_stamps(part.times).tobytes())
        digest.update("\n".join(part.ids).encode())
    return digest.hexdigest()


def _identity(
    segments: Sequence[str], ids: Sequence[str], times: Sequence[datetime], y: np.ndarray
) -> str:
    """One sha256 over the ordered segment hashes and every usable row's id, time and label.

    Labels are part of it because they live beside the segments and may be corrected later.
    """
    digest = hashlib.sha256()
    for name in segments:
        digest.update(f"segment {name}\n".encode())
    # Whole columns at once: row by row this took as long as a fit.
    digest.update("\n".join(f"{len(identity)}:{identity}" for identity in ids).encode())
    digest.update(_stamps(times).tobytes())
    digest.update(np.asarray(y, dtype=np.float64).tobytes())
    return digest.hexdigest()


def _datetimes(column: pd.Series) -> list[datetime]:
    """A time column (`datetime64[us, UTC]`) as datetimes in UTC."""
    import pandas as pd

    return list(pd.DatetimeIndex(column).tz_convert(UTC).to_pydatetime())


def _stamps(times: Sequence[datetime]) -> np.ndarray:
    """Whole microseconds since 1970, int64 of shape (n,)."""
    import pandas as pd

    stamps: np.ndarray = pd.DatetimeIndex(list(times)).as_unit("us").asi8
    return stamps
