"""What an operator may choose: one YAML file, every key validated with its line.

`load(path)` reads it; a missing key takes the default written here. Secrets are never in the file:
a setting that needs one names an environment variable (`env:NAME`) or a file (`file:/path`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta, Struct, field

from core import times
from core.errors import SettingsError
from core.settings_access import AccessSettings as AccessSettings
from core.settings_access import DashboardSettings as DashboardSettings
from core.settings_alerts import AlertSettings as AlertSettings
from core.settings_alerts import MaintenanceSettings as MaintenanceSettings
from core.settings_alerts import MuteSettings as MuteSettings
from core.settings_alerts import RouteSettings as RouteSettings
from core.settings_data import PrivacySettings as PrivacySettings
from core.settings_data import QualitySettings as QualitySettings
from core.settings_interpreters import BackendChoice as BackendChoice
from core.settings_interpreters import InterpreterSettings as InterpreterSettings
from core.settings_interpreters import Profile as Profile
from core.settings_monitor import EvidentlyMetric as EvidentlyMetric
from core.settings_receivers import HeartbeatSettings as HeartbeatSettings
from core.settings_receivers import ReceiverSettings as ReceiverSettings
from core.settings_receivers import ReceiverType as ReceiverType
from core.settings_retrain import NUMBER as NUMBER
from core.settings_retrain import POLICY as POLICY
from core.settings_retrain import Count as Count
from core.settings_retrain import Duration as Duration
from core.settings_retrain import GateSettings as GateSettings
from core.settings_retrain import Guardrail as Guardrail
from core.settings_retrain import Positive as Positive
from core.settings_retrain import RetrainSettings as RetrainSettings
from core.settings_retrain import RolloutSettings as RolloutSettings
from core.settings_retrain import SearchSettings as SearchSettings
from core.settings_retrain import Share as Share
from core.settings_serving import Port as Port
from core.settings_serving import ServingSettings as ServingSettings
from core.spec import NAME, Metric


class Secret:
    """A secret's value, which never shows itself: its repr and str are `***`."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one place that uses it."""
        return self._value

    def __repr__(self) -> str:
        return "***"


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is watched, retrained and logged."""

    owner: str = ""
    """Who answers for the model; named in every message."""
    runbook: str = ""
    """URL of what to do; linked in every message."""
    check_every: Duration = "1h"
    """Time between two checks."""
    window: Duration = "7d"
    """Span of event time a check looks back over."""
    min_rows: Annotated[int, Meta(ge=1)] = 50
    """Fewer rows (or labels) than this are `insufficient_data`, never an alarm."""
    metric: Metric | None = None
    """The loss to watch; the model's own (Brier, log loss, MAE) when not set."""
    tolerance: Positive = 0.1
    """How much worse than expected the loss may get, relative to the baseline's."""
    threshold: Share = 0.5
    """Probability from which a binary answer counts as positive, for accuracy, F1 and the like."""
    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """The quantile that a regression predicts, for its pinball loss."""
    segments: tuple[str, ...] = ()
    """Input columns whose levels (or quarters, of a number) are scored by themselves; when empty
    the gate's, else up to three columns with few levels."""
    false_alarms_per_quarter: Positive = 1.0
    """Drift alarms a quarter you tolerate when nothing drifts; it fixes every threshold."""
    classifier_every: Duration | None = None
    """How often a classifier tries to tell new rows from the baseline's; never when not set."""
    text: tuple[str, ...] = ()
    """Columns of free text: their length, non-letters and unknown words are watched as numbers."""
    evidently: tuple[EvidentlyMetric, ...] = ()
    """Evidently's metrics computed in every check, each with a line of its own."""
    max_age: Duration | None = None
    """Older models are `stale` even if nothing else is wrong."""
    label_delay: Duration | None = None
    """How late labels are; later ones are missed labels. Measured when not set."""
    score_width: Duration | None = None
    """Width of the event-time windows whose realised metric is kept and corrected as labels arrive;
    a day, or the check window where that is shorter, when not set."""
    no_data_after: Duration | None = None
    """Silence longer than this is a page; two check windows when not set."""
    late_data_after: Duration | None = None
    """Rows that arrive later than this after they were asked are late; the check window when not
    set, since no check judges them any more."""
    no_labels_after: Duration | None = None
    """Longest normal silence of labels; two check windows and `label_delay` when not set."""
    sample_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of predictions that are logged, chosen by a hash of their id."""
    retention: Duration | None = None
    """Rows older than this and their labels are deleted; kept for ever when not set."""
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    durability: Literal["strict", "relaxed"] = "strict"
    """`strict` answers after the row is committed (or says that it is not); `relaxed` at once."""
    commit_within: Duration = "10ms"
    """`relaxed`: rows are committed within this time of their answer; what a crash can lose."""
    latency_budget: Duration = "50ms"
    """How long waiting and predicting may take together; batches are kept that small under load."""
    weight: Positive = 1.0
    """The model's share of processor and memory under load, relative to other models'."""
    pinned: bool = False
    """Never taken out of memory to make room for another model."""
    trust_pickle: bool = False
    """Allow this model's artifact to be unpickled. That runs any code its author put there."""
    backend: BackendChoice | None = None
    """The interpreter of this model; serving's when not set."""
    profile: Profile | None = None
    """What its interpreter is chosen for; serving's when not set."""
    repeat_every: Duration = "7d"
    """How often an incident that lasts is told again, while nobody has acknowledged it."""
    receivers: tuple[str, ...] = ()
    """Names of the receivers that are told; all of them when empty."""
    labels: dict[str, str] = field(default_factory=dict)
    """Own labels of the model's incidents, for routes and silences, such as `{team: crm}`."""
    quality: QualitySettings = field(default_factory=QualitySettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)


class MlflowSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tracking_uri: str = ""
    """SQLite in the home folder when empty; the file store is not supported by MLflow 3."""
    artifacts: str = ""
    """Where artifacts of a new experiment go; a folder in the home folder when empty."""
    ui: str = ""
    """Address of the MLflow UI for links, when shelflife does not start it."""
    port: Port = 5000
    """Where the MLflow UI that `up` starts listens; 0 takes any free port."""
    poll_every: Duration = "2s"
    """A moved alias is obeyed within this time."""
    webhook_secret: str = ""
    """`env:NAME` or `file:/path` of the secret of MLflow's registry webhooks, which hasten a poll;
    their way in is closed when empty."""


class IngestSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `/api/v1` takes of predictions and labels from elsewhere."""

    max_body_mb: Positive = 8.0
    """Largest body, before and after it is decompressed."""
    max_rows: Annotated[int, Meta(ge=1)] = 20_000
    """Most rows of one request; they are committed in one transaction, which others wait for."""
    future: Duration = "10m"
    """How far ahead of our clock an event time may be; later ones are refused."""
    pair_within: Duration = "1h"
    """How long half a CloudEvents pair waits for the other half before it counts as lost."""
    read_within: Duration = "30s"
    """How long a caller may take to send a body."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    home: str = ".shelflife"
    """Folder of everything shelflife keeps; relative to the settings file."""
    ledger: str = ""
    """SQLAlchemy URL of the ledger; SQLite in the home folder when empty."""
    segments: str = ""
    """Where sealed rows lie, this ledger's alone: a folder or an fsspec URL (`s3://bucket/prefix`);
    a folder in `home` when empty. S3's credentials come from the environment."""
    segments_options: dict[str, Any] = field(default_factory=dict)
    """Handed to fsspec for `segments`, such as `{endpoint_url: http://minio:9000}`; secrets among
    them as `env:NAME` or `file:/path`."""
    environment: str = ""
    """Named in messages: staging, production, …"""
    mlflow: MlflowSettings = field(default_factory=MlflowSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    receivers: tuple[ReceiverSettings, ...] = ()
    """Who is told of incidents; nobody when empty."""
    heartbeat: HeartbeatSettings = field(default_factory=HeartbeatSettings)
    """A sign of life that somebody else misses when it stops; off when empty."""
    alerts: AlertSettings = field(default_factory=AlertSettings)
    """How incidents are grouped, routed, repeated, escalated and muted."""
    defaults: ModelSettings = field(default_factory=ModelSettings)
    """What models without a section of their own use, and sections start from."""
    models: dict[str, ModelSettings] = field(default_factory=dict)
    """Settings of single models, by name."""

    def model(self, name: str) -> ModelSettings:
        """The settings of one model."""
        return self.models.get(name, self.defaults)

    @property
    def home_path(self) -> Path:
        return Path(self.home)

    @property
    def ledger_url(self) -> str:
        return self.ledger or f"sqlite:///{self.home_path / 'ledger.db'}"

    @property
    def segments_place(self) -> str:
        return self.segments or str(self.home_path / "segments")

    @property
    def tracking_uri(self) -> str:
        return self.mlflow.tracking_uri or f"sqlite:///{self.home_path / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str:
        return self.mlflow.artifacts or str(self.home_path / "mlartifacts")


def span(text: Duration) -> timedelta:
    """A validated duration setting as a timedelta."""
    return times.duration(text)


def revealed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with every `env:NAME` and `file:/path` in them replaced by the secret it names.

    Raises:
        SettingsError: see `secret`.
    """
    return {name: _revealed(value) for name, value in options.items()}


def _revealed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return revealed(value)
    named = isinstance(value, str) and value.startswith(("env:", "file:"))
    found = secret(value) if named else None
    return found.reveal() if found else value


def secret(reference: str) -> Secret | None:
    """The secret that a setting names; None for an empty setting.

    Raises:
        SettingsError: the variable or file does not exist, or the value itself was written down.
    """
    if not reference:
        return None
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise SettingsError(reference, None, f"the environment variable {name} to be set")
        return Secret(os.environ[name])
    if kind == "file":
        if not Path(name).is_file():
            raise SettingsError(reference, None, f"a readable file {name}")
        return Secret(Path(name).read_text().strip())
    raise SettingsError("secret", Secret(reference), "env:NAME or file:/path, never the secret")


def load(path: Path) -> Settings:
    """Read and validate a settings file; folders in it are relative to the file's own.

    Raises:
        SettingsError: no such file, not YAML, an unknown key, a value of the wrong type.
    """
    if not path.is_file():
        raise SettingsError("file", str(path), "a settings file; `shelflife init` writes one")
    settings = parse(path.read_text(), file=str(path))
    home = (path.resolve().parent / settings.home).resolve()
    segments = settings.segments
    if segments and "://" not in segments:
        segments = str((path.resolve().parent / segments).resolve())
    return msgspec.structs.replace(settings, home=str(home), segments=segments)


def parse(text: str, *, file: str = "settings") -> Settings:
    """Validate the text of a settings file.

    Raises:
        SettingsError: see `load`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = None if mark is None else mark.line + 1
        raise SettingsError("YAML", error.problem, "valid YAML", line=line, file=file) from None
    if raw is None:
        raw = {}
    reader = _Reader(file, _lines(root))
    reader.check(raw, Settings, "")
    defaults = raw.get("defaults", {})
    merged = {name: _merge(defaults, section) for name, section in raw.get("models", {}).items()}
    for name in merged:
        if not NAME.match(name):
            reader.fail(f"models.{name}", name, "1 to 128 letters, digits, '.', '_' or '-'")
    return msgspec.convert({**raw, "models": merged}, Settings)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any] | None) -> dict[str, Any]:
    merged = dict(base)
    for key, value in (over or {}).items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _lines(node: yaml.Node | None, path: str = "") -> dict[str, int]:
    """Line number by dotted key, one-based."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            found[here] = key.start_mark.line + 1
            found |= _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = f"{path}[{index}]"
            found[here] = value.start_mark.line + 1
            found |= _lines(value, here)
    return found


class _Reader:
    """Walks the raw settings beside their types, so that an error knows its key and line."""

    def __init__(self, file: str, lines: dict[str, int]) -> None:
        self.file, self.lines = file, lines

    def fail(self, key: str, value: object, expected: str) -> None:
        raise SettingsError(key, value, expected, line=self.lines.get(key), file=self.file)

    def check(self, raw: object, section: type[Struct], path: str) -> None:
        if not isinstance(raw, dict):
            self.fail(path or "file", raw, "a mapping of keys to values")
            return
        hints = get_type_hints(section, include_extras=True)
        types = {info.encode_name: hints[info.name] for info in msgspec.structs.fields(section)}
        for key, value in raw.items():
            here = f"{path}.{key}" if path else str(key)
            if key not in types:
                near = difflib.get_close_matches(str(key), types, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(sorted(types))
                self.fail(here, value, f"one of the known keys ({known}){hint}")
            self.value(value, types[key], here)
        for info in msgspec.structs.fields(section):
            if info.required and info.name not in raw:
                here = f"{path}.{info.name}"
                line = self.lines.get(path)
                raise SettingsError(here, None, "a value (required)", line=line, file=self.file)

    def value(self, value: object, wanted: Any, here: str) -> None:
        if isinstance(wanted, type) and issubclass(wanted, Struct):
            return self.check(value, wanted, here)
        if wanted == dict[str, ModelSettings]:
            if not isinstance(value, dict):
                self.fail(here, value, "a mapping of model names to their settings")
            for name, section in dict(value).items():  # type: ignore[call-overload]
                if section is not None:
                    self.check(section, ModelSettings, f"{here}.{name}")
            return None
        inner = get_args(wanted)[0] if get_origin(wanted) is tuple else None
        if isinstance(inner, type) and issubclass(inner, Struct):
            if not isinstance(value, list):
                self.fail(here, value, f"a list of {here.rpartition('.')[2]}")
            for index, section in enumerate(value):  # type: ignore[arg-type]
                self.check(section, inner, f"{here}[{index}]")
            return None
        try:
            msgspec.convert(value, wanted)
        except msgspec.ValidationError as error:
            self.fail(here, value, _expected(str(error)))
        return None


def _expected(message: str) -> str:
    """msgspec's `Expected …` as the end of our sentence."""
    if times.DURATION in message or "matching regex" in message:
        return "a duration such as 90s, 30m, 12h, 7d, 4w"
    return message.removeprefix("Expected ").replace("`", "").split(" - at")[0]
