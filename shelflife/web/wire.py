"""What travels: the types of bodies and answers, which are also the schemas of the document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from core.spec import Scalar

Optional = str | None | UnsetType
Truth = str | int | float | bool
#: What a caller may say that the model answered; see `shelflife.web.outputs`.
Given = dict[str, Scalar | list[float] | dict[str, float]] | list[float] | str | int | float | bool


class PredictionIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """One row that a model was asked and answered somewhere else."""

    inputs: dict[str, Scalar]
    """Every input column of the model, by name; null only where the column may be missing."""
    outputs: Given
    """What the model answered: its outputs by name (`{"probability": 0.7}`), the class or number it
    predicted (`{"prediction": …}` or the bare value), or a probability per class."""
    id: Optional = UNSET
    """The id that its label will come with, up to 256 characters; derived when absent."""
    event_id: Optional = UNSET
    """The same (source, event_id) again is a duplicate; the id when absent."""
    source: Optional = UNSET
    """Who sends it, up to 120 characters; `api` when absent."""
    version: Optional = UNSET
    """The model version that answered; the champion of that time when absent."""
    time: Optional = UNSET
    """When it was asked, ISO 8601, UTC when it names no zone; the time of receipt when absent."""
    role: Literal["champion", "challenger", "shadow"] | UnsetType = UNSET
    """Whether the caller was given this answer (champion) or it ran beside."""


class LabelIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What turned out true for one prediction."""

    id: str
    """The prediction's id."""
    label: Truth
    time: Optional = UNSET
    """When it became known, ISO 8601; the time of receipt when absent. The last one wins."""
    source: Optional = UNSET
    """Who says so, up to 120 characters; `api` when absent."""


class PredictionsIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A batch of predictions."""

    predictions: list[PredictionIn]


class LabelsIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A batch of labels."""

    labels: list[LabelIn]


class ActionIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A request for action."""

    by: Annotated[str, Meta(max_length=128)] = ""
    reason: Annotated[str, Meta(max_length=2000)] = ""
    arguments: dict[str, str | int] = {}


class IncidentActionIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What somebody does about an incident."""

    by: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: Annotated[str, Meta(max_length=2000)] = ""
    """Needed to silence and to resolve."""
    until: Annotated[str, Meta(max_length=64)] = "4h"
    """Of a silence: so long (`4h`, `2d`), or an ISO 8601 moment."""
    receiver: Annotated[str, Meta(max_length=64)] = ""
    """Of a replay: only to this one."""


class SilenceIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What somebody does not want to hear of."""

    match: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(min_length=1, max_length=20)]
    """Matchers such as `model="churn"`, with `=`, `!=`, `=~` or `!~`; all of them must hold."""
    by: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    until: Annotated[str, Meta(max_length=64)] = "4h"
    """So long (`4h`, `2d`), or an ISO 8601 moment."""
    starts: Annotated[str, Meta(max_length=64)] = ""
    """An ISO 8601 moment; at once when empty."""


class SilenceEndIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """Who ends a silence."""

    by: Annotated[str, Meta(min_length=1, max_length=128)]


class Problem(Struct, frozen=True, kw_only=True):
    """Why one row or event was refused."""

    row: int
    """Its position in the body, from 0."""
    reason: str
    """A short code; `/metrics` counts refusals by it."""
    field: str
    value: Any
    expected: str


class PredictionsOut(Struct, frozen=True, kw_only=True):
    """What became of a batch of predictions; what is `new` or `duplicate` is committed."""

    received: int
    new: int
    duplicate: int
    unsampled: int
    refused: int
    problems: tuple[Problem, ...] = ()
    """The first hundred refusals."""
    ids: tuple[str | None, ...] | UnsetType = UNSET
    """The id of every row, in order, where some had none; null for refused rows."""


class EventsOut(Struct, frozen=True, kw_only=True):
    """What became of CloudEvents; everything but `refused` is committed."""

    received: int
    paired: int
    """Pairs that these events completed."""
    waiting: int
    """Events whose counterpart has not come yet."""
    duplicate: int
    """Events that had come before."""
    refused: int
    """Events that cannot be used, or whose counterpart cannot."""
    new: int
    """Predictions logged."""
    unsampled: int
    problems: tuple[Problem, ...] = ()


class Failure(Struct, frozen=True, kw_only=True):
    """Why a request was not obeyed."""

    error: str
    """One sentence for people."""
    field: str | UnsetType = UNSET
    value: Any = UNSET
    expected: str | UnsetType = UNSET


class Nothing(Struct, frozen=True, kw_only=True):
    """Every row was refused, or one was and the request was atomic: nothing was written."""

    error: str
    field: str
    value: Any
    expected: str
    received: int
    refused: int
    problems: tuple[Problem, ...]


def text(value: Optional) -> str:
    """An optional text as a string: empty when absent or null."""
    return value if isinstance(value, str) else ""
