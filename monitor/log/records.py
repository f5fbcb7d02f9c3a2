"""A logged row, a label, and the protocol every inference log follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from core.spec import Scalar

if TYPE_CHECKING:
    import pandas as pd

#: champion answered the caller; challenger answered a canary's share; shadow answered nobody;
#: history was never served (training rows, imported for the record).
Role = Literal["champion", "challenger", "shadow", "history"]


class Prediction(Struct, frozen=True, kw_only=True):
    """One row that was asked and answered."""

    model: str
    id: str  # the prediction id; labels are joined on it
    version: str
    time: datetime  # event time, UTC
    inputs: dict[str, Scalar]
    outputs: dict[str, float]
    role: Role = "champion"
    source: str = "serving"  # (source, event_id) is unique: the same event twice is logged once
    event_id: str = ""  # the prediction id when empty


class Label(Struct, frozen=True, kw_only=True):
    """What turned out true for one prediction."""

    model: str
    id: str
    value: Scalar  # as given; encoded by the model's spec when it is used
    time: datetime  # when it became known; the last by this time wins
    source: str = ""


class LabelReceipt(Struct, frozen=True, kw_only=True):
    """What became of a batch of labels; all but the unsampled are kept."""

    new: int  # first label for a logged prediction
    changed: int  # corrects or repeats an earlier label
    unknown: int  # no such prediction in the log (yet)
    unsampled: int = 0  # labels left out, as their predictions are


class LabelActivity(Struct, frozen=True, kw_only=True):
    """Predictions whose newest label became known in some span of time."""

    labelled: int
    repeated: int  # ... that had been labelled before, at another label time
    corrected: int  # ... with another value
    unknown: int  # ... that the log does not hold (yet)


class LogCounts(Struct, frozen=True, kw_only=True):
    """What the log holds of one model."""

    predictions: int  # rows, sealed ones included
    hot: int
    segments: int
    quarantined: int  # segments that failed verification
    labels: int  # distinct predictions with a label, known or not
    unknown_labels: int
    oldest: datetime | None
    newest: datetime | None
    seen: int = 0  # rows offered, history apart; `sampled` has them by hour and rate
    kept: int = 0  # of those the log was offered itself, in the sample (repeats included)
    unsampled_labels: int = 0  # left out with their predictions


class Sampled(Struct, frozen=True, kw_only=True):
    """What was offered to the log in one hour of event time under one rate, and kept of it."""

    hour: datetime
    rate: float
    seen: int
    kept: int
    labels_seen: int
    labels_kept: int


#: A model, a moment in the hour of event time, and the rate under which a row was left out.
LeftOut = tuple[str, datetime, float]


class Forgotten(Struct, frozen=True, kw_only=True):
    """What `forget` or `retain` took out of the log."""

    rows: int
    labels: int  # statements
    segments: int = 0  # files deleted or rewritten


class Rows(Struct, kw_only=True):
    """Rows read from the log: three frames with one common RangeIndex.

    Attributes:
        meta: columns `id`, `version`, `role`, `source` (str), `time` (datetime64[us, UTC]),
            `label` (object, as given; None where missing), `label_time` (datetime64[us, UTC], NaT).
        inputs: one column per input, values as logged.
        outputs: one float64 column per output (see `ModelSpec.outputs`).
        segments: sha256 of the sealed segments the rows came from, in order.
        problems: segments that had to be left out because they do not match their hash.
    """

    meta: pd.DataFrame
    inputs: pd.DataFrame
    outputs: pd.DataFrame
    segments: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.meta)


class SampleLog(Protocol):
    """An inference log. Every write is idempotent; what returned is committed."""

    def append(
        self,
        rows: Sequence[Prediction],
        *,
        received: datetime,
        left_out: Mapping[LeftOut, int] | None = None,
    ) -> int:
        """Commit rows in one transaction; rows whose (source, event id) is there are skipped.

        Args:
            left_out: rows that the caller left out itself because `sample.kept` says so, so that
                `seen` is exact; counted in the same transaction.

        Returns how many were new.
        """
        ...

    def append_labels(self, labels: Sequence[Label], *, received: datetime) -> LabelReceipt:
        """Commit labels in one transaction, those for unknown predictions too."""
        ...

    def read(
        self,
        model: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        known_at: datetime | None = None,
        known_after: datetime | None = None,
        roles: Sequence[Role] = ("champion", "challenger"),
        version: str | None = None,
        labelled: bool = False,
        newest: int | None = None,
        inputs: bool | Collection[str] = True,
    ) -> Rows:
        """Rows with start <= time < end, in order of time, each with its label.

        Args:
            known_at: labels that became known after this moment do not exist yet.
            known_after: only rows whose label became known after this moment.
            roles: only rows of these roles.
            version: only rows this version answered.
            labelled: only rows that have a label (known at `known_at`).
            newest: only the newest so many rows, after the other filters.
            inputs: False leaves `inputs` and `outputs` without columns: several times faster
                where only ids, times or labels matter. Names keep only these inputs.

        Rows of one time come in the order in which they arrived. Column types: `log.values`.

        Raises:
            StoreUnavailable: the segments' store cannot be reached; nothing is concluded from it.
        """
        ...

    def counts(self, model: str) -> LogCounts:
        """What the log holds of one model, verified against nothing."""
        ...

    def seal(self, *, before: datetime, min_rows: int = 1) -> int:
        """Move hot rows received before a moment into immutable segments; returns rows moved."""
        ...

    def segments(self, model: str) -> list[str]:
        """The sha256 of the model's active segments, oldest first."""
        ...

    def compact(self, model: str, *, at: datetime, rows: int = 100_000) -> int:
        """Merge neighbouring small segments into ones of at most `rows` rows.

        What `read` returns stays the same. Returns the segments merged away.
        """
        ...

    def forget(
        self, model: str, ids: Collection[str], *, at: datetime, reason: str = "", by: str = ""
    ) -> Forgotten:
        """Remove every row and label of these prediction ids, in hot rows, segments and keys."""
        ...

    def retain(self, model: str, *, since: datetime, at: datetime) -> Forgotten:
        """Delete what is older than `since`: hot rows, segments whose newest row is older, and
        the labels of both. A segment with a newer row stays whole."""
        ...
