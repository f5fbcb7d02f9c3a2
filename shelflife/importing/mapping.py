"""Which column of a file is what: what the options say, the rest guessed by name and told."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from core.errors import InputError
from core.spec import ModelSpec, valid_name
from core.times import spell
from monitor.log.records import Role

_GUESSES = {
    "id": ("id", "prediction_id", "request_id", "event_id", "uuid", "row_id"),
    "time": (
        "time", "timestamp", "event_time", "prediction_time", "asked_at", "created_at", "datetime",
        "date", "at", "ts",
    ),
    "label": ("label", "target", "y", "y_true", "actual", "outcome", "truth", "ground_truth"),
    "label_time": (
        "label_time", "label_timestamp", "labelled_at", "labeled_at", "label_at", "known_at",
        "observed_at",
    ),
    "version": ("version", "model_version"),
    "output": ("prediction", "probability", "y_pred", "y_prob", "predicted", "proba", "score"),
}  # fmt: skip


class Options(Struct, frozen=True, kw_only=True):
    """What a person said; empty: guess."""

    model: str
    id: str = ""
    time: str = ""
    label: str = ""
    label_time: str = ""
    label_delay: str = ""
    version: str = ""
    prediction: str = ""
    outputs: dict[str, str] = {}
    inputs: dict[str, str] = {}
    ignore: tuple[str, ...] = ()
    role: Role | None = None
    tz: str = "UTC"


class Mapping(Struct, frozen=True, kw_only=True):
    """Where each part of a row is found; None: nowhere."""

    model: str
    role: Role
    id: str | None  # None: the content's hash and the row's number
    time: str | None
    label: str | None
    label_time: str | None
    label_delay: float  # seconds after the event time, where there is no label time
    version: str  # what rows are said to be answered by where there is no column
    version_column: str | None
    inputs: dict[str, str]  # name -> column
    outputs: dict[str, str]
    tz: str
    predictions: bool  # rows go to the log
    labels: bool  # labels do

    def columns(self) -> list[str]:
        """The columns that are read."""
        single = (self.id, self.time, self.label, self.label_time, self.version_column)
        several = (*self.inputs.values(), *self.outputs.values())
        return list(dict.fromkeys(name for name in (*single, *several) if name is not None))


class Known(Struct, frozen=True, kw_only=True):
    """What the installation knows of the model."""

    spec: ModelSpec | None = None
    champion: str = ""
    label_delay: float = 0.0


def resolve(
    options: Options, columns: Sequence[str], known: Known
) -> tuple[Mapping, tuple[str, ...]]:
    """The mapping of a source with these columns, and a line for people about each guess.

    Raises:
        InputError: a column that is not there, one used twice, or nothing to import.
    """
    finder = _Finder(options, columns, known.spec)
    identity, label = finder.find("id", options.id), finder.find("label", options.label)
    outputs = _outputs(finder, options, known.spec)
    time, label_time = (
        finder.find("time", options.time),
        finder.find("label_time", options.label_time),
    )
    version, version_column = _version(finder, options, known)
    inputs = _inputs(finder, options, known.spec)
    predictions = time is not None and bool(inputs or outputs)
    if not predictions and label_time is None:
        time, label_time = None, time  # a file of labels: its time is when they became known
    _complete(options, columns, predictions, identity, label, time)
    role = options.role or ("champion" if outputs else "history")
    if predictions:
        if role == "champion" and not outputs:
            raise InputError(
                "--role", role, "history, or --prediction COLUMN: nothing was answered"
            )
        if options.role is None:
            finder.tell(f"role: {role} ({'there are' if outputs else 'no'} outputs)")
    delay = _delay(options, known, role) if label and predictions and not label_time else 0.0
    if label and predictions and not label_time:
        after = spell(timedelta(seconds=delay))
        finder.tell(f"label time: {after} after the event time (no column says it)")
    mapping = Mapping(
        model=valid_name(options.model),
        role=role,
        id=identity,
        time=time if predictions else None,
        label=label,
        label_time=label_time,
        label_delay=delay,
        version=version,
        version_column=version_column if predictions else None,
        inputs=inputs if predictions else {},
        outputs=outputs if predictions else {},
        tz=_zone(options.tz),
        predictions=predictions,
        labels=label is not None,
    )
    if predictions and identity is None:
        finder.tell("id: the content's hash and the row's number (no column is one)")
    unused = [c for c in columns if c not in mapping.columns()]
    if unused:
        finder.tell(f"not read: {', '.join(unused)}")
    return mapping, tuple(finder.lines)


class _Finder:
    """Takes columns, each for one purpose, and remembers what was guessed."""

    def __init__(self, options: Options, columns: Sequence[str], spec: ModelSpec | None) -> None:
        self.columns, self.taken, self.lines = list(columns), dict[str, str](), list[str]()
        # A model's input called `score` or `id` is an input.
        features = set(spec.columns) if spec else set()
        named = set(options.inputs.values()) | set(options.ignore)
        self.free = [c for c in columns if c not in features | named]
        self.target = spec.target if spec else ""

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def take(self, option: str, column: str) -> str:
        if column not in self.columns:
            raise InputError(option, column, f"one of the columns {self.columns}")
        if column in self.taken:
            raise InputError(option, column, f"another column ({self.taken[column]} is that one)")
        self.taken[column] = option
        return column

    def find(self, what: str, said: str) -> str | None:
        option = f"--{what.replace('_', '-')}"
        if said:
            return self.take(option, said)
        names = (self.target, *_GUESSES[what]) if what == "label" else _GUESSES[what]
        lowered = {column.lower(): column for column in reversed(self.free)}
        for name in names:
            column = lowered.get(name.lower())
            if column is not None and column not in self.taken:
                self.tell(f"{what.replace('_', ' ')}: {column} (guessed)")
                return self.take(option, column)
        return None


def _outputs(finder: _Finder, options: Options, spec: ModelSpec | None) -> dict[str, str]:
    wanted = spec.outputs if spec else []
    found = {name: finder.take(f"--output {name}", c) for name, c in options.outputs.items()}
    if options.prediction:
        if len(wanted) > 1:
            raise InputError("--prediction", options.prediction, f"--output for each of {wanted}")
        name = wanted[0] if wanted else "prediction"
        found[name] = finder.take("--prediction", options.prediction)
    if unknown := sorted(set(found) - set(wanted)) if spec else []:
        raise InputError("--output", unknown, f"outputs of the model: {wanted}")
    if not found:
        exact = [name for name in wanted if name in finder.free]
        if wanted and len(exact) == len(wanted):
            found = {name: finder.take("--output", name) for name in wanted}
            finder.tell(f"outputs: {', '.join(found)} (guessed)")
        elif len(wanted) <= 1 and (column := finder.find("output", "")) is not None:
            named = column if column in ("prediction", "probability") else "prediction"
            found[wanted[0] if wanted else named] = column
    if found and (missing := sorted(set(wanted) - set(found))):
        raise InputError("--output", sorted(found), f"all outputs of the model, also {missing}")
    return found


def _inputs(finder: _Finder, options: Options, spec: ModelSpec | None) -> dict[str, str]:
    said = {name: finder.take(f"--input {name}", c) for name, c in options.inputs.items()}
    if spec is None:
        skipped = set(finder.taken) | set(options.ignore)
        rest = [c for c in finder.columns if c not in skipped]
        if rest:
            finder.tell(f"inputs: {', '.join(rest)} (all the rest: the model is not registered)")
        return said | {column: column for column in rest}
    found = said | {c: c for c in spec.columns if c not in said and c in finder.columns}
    missing = [name for name in spec.columns if name not in found]
    if missing and len(missing) < len(spec.columns):
        raise InputError("inputs", missing, "columns of these names, or --input NAME=COLUMN")
    return {name: found[name] for name in spec.columns} if not missing else {}


def _version(finder: _Finder, options: Options, known: Known) -> tuple[str, str | None]:
    if options.version and options.version in finder.columns:
        return "", finder.take("--version", options.version)
    if options.version:
        return options.version, None
    column = finder.find("version", "")
    if column is None:
        finder.tell(f"version: {known.champion or 'unknown'} (no column says it)")
    return known.champion or "unknown", column


def _delay(options: Options, known: Known, role: Role) -> float:
    if options.label_delay:
        from core.times import duration

        return duration(options.label_delay).total_seconds()
    return known.label_delay if role == "champion" else 0.0


def _complete(
    options: Options,
    columns: Sequence[str],
    predictions: bool,
    identity: str | None,
    label: str | None,
    time: str | None,
) -> None:
    if not predictions and label is None:
        raise InputError(
            "columns", list(columns), "--time with inputs or --prediction, or --id with --label"
        )
    if not predictions and identity is None:
        raise InputError("--id", None, "the column that says which prediction a label is for")
    if not predictions and (options.prediction or options.outputs or options.role):
        raise InputError("--time", time, "the column that says when each prediction was made")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError("--tz", name, "an IANA time zone such as Europe/Berlin") from None
    return name


def described(mapping: Mapping) -> dict[str, Dict[str, str] | str | None]:
    """The mapping as plain values for people."""
    found = {
        "id": mapping.id or "(row number)",
        "time": mapping.time,
        "label": mapping.label,
        "label time": mapping.label_time,
        "version": mapping.version_column or mapping.version,
        "role": mapping.role if mapping.predictions else None,
        "outputs": mapping.outputs or None,
        "inputs": mapping.inputs or None,
    }
    return {key: value for key, value in found.items() if value is not None}
