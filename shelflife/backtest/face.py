"""`shelflife.backtest(...)`: replay a history under several policies and hold them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from core.errors import InputError
from core.settings import ModelSettings, load
from core.spec import METRICS, Metric, Task
from core.times import iso
from monitor.check import chosen_metric
from retrain.policy import parse
from shelflife.backtest import results
from shelflife.backtest.bank import Bank
from shelflife.backtest.estimators import factory
from shelflife.backtest.history import Columns, Cut, History, open_history
from shelflife.backtest.moments import parse_span
from shelflife.backtest.replay import half_the_cores, prepare, replay, replay_aside
from shelflife.backtest.results import (
    EVERY_POLICY,
    NEVER_POLICY,
    Facts,
    PolicyResult,
    Timeline,
    summarise,
)
from shelflife.backtest.terms import differing, terms

if TYPE_CHECKING:
    import pandas as pd

MODEL = "backtest"
_WORTH_A_PROCESS = 10_000  # rows to replay; starting another process takes seconds
Progress = Callable[[str, int, int], None]  # policy, windows done, windows in all


class Backtest:
    """What would have happened under each policy.

    Attributes:
        policies: the policies that were asked for, by name as given.
        references: `never` and `every:1`, which the others are held against.
        facts: what was replayed, on what terms, and every assumption that was made.
    """

    def __init__(
        self,
        policies: dict[str, PolicyResult],
        references: dict[str, PolicyResult],
        facts: Facts,
    ) -> None:
        self.policies, self.references, self.facts = policies, references, facts

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Each policy's numbers, the references' included: `summary["default"]["fits"]`."""
        every = self.policies | self.references
        return {name: msgspec.to_builtins(found.summary) for name, found in every.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per policy and window; `policy` is the first column, times are UTC."""
        import pandas as pd

        rows = [
            {"policy": name, **msgspec.to_builtins(window)}
            for name, found in (self.policies | self.references).items()
            for window in found.windows
        ]
        frame = pd.DataFrame(rows)
        for column in ("start", "end"):
            frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601")
        return frame

    def to_json(self) -> str:
        """`{"policies": {NAME: {"summary": …, "windows": […]}}, …}`; equal runs, equal bytes."""
        value = {
            "policies": self.policies,
            "references": {name: found.summary for name, found in self.references.items()},
            "history": self.facts,
        }
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

    def to_html(self) -> str:
        """The picture as one self-contained page."""
        from shelflife.backtest.picture import page

        return page(self)

    def save_html(self, path: str | Path) -> Path:
        """Write the picture."""
        chosen = Path(path)
        chosen.parent.mkdir(parents=True, exist_ok=True)
        chosen.write_text(self.to_html(), encoding="utf-8")
        return chosen

    def _repr_html_(self) -> str:
        from shelflife.backtest.picture import fragment

        return fragment(self)

    def __str__(self) -> str:
        from shelflife.backtest.words import report

        return report(self)

    __repr__ = __str__


def backtest(
    history: Any,
    *,
    target: str,
    time: str = "",
    task: Task | None = None,
    label_delay: str | timedelta | None = None,
    label_time: str = "",
    train_rows: int = 0,
    batch_rows: int = 0,
    window: str | timedelta | None = None,
    policies: Sequence[str] | str = ("default",),
    estimator: Any = None,
    cost_of_fit: float | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    id: str = "",
    features: Sequence[str] = (),
    drop: Sequence[str] = (),
    settings: str | Path | ModelSettings | None = None,
    progress: Progress | None = None,
) -> Backtest:
    """Replay a history through the service's own checks, policy, assembly, gate and watch.

    Args:
        history: a path to a Parquet or CSV file, or a pandas, polars or pyarrow frame.
        target: the label's column.
        time: the column with the time of each row; guessed when empty.
        task: binary, multiclass or regression; guessed from the labels when None.
        label_delay: how long after its row each label becomes known, `"30d"` or a timedelta.
        label_time: the column that says when each label became known, instead.
        train_rows: rows the first model may learn from; a fifth when 0.
        batch_rows: rows of one window; `window` is its span of time instead. Forty windows when
            neither is given.
        policies: `default`, `never`, `every:N`, `drift_share`, `threshold`, …
        estimator: `package.module:factory`, a factory, or an unfitted estimator; histogram gradient
            boosting when None.
        cost_of_fit: what one training job costs, in expected losses of one window (0.2 when None).
        metric: the loss; Brier, log loss or MAE by task when None.
        seed: of everything that draws numbers.
        id: the column with a unique id of each row.
        features, drop: the inputs, or columns that are none.
        settings: a settings file, whose `defaults` are taken, or a model's settings.
        progress: called with policy, windows done and windows in all.

    Returns:
        The result; in a notebook it shows itself.

    Raises:
        InputError: a column, value or history that cannot be replayed; with what was expected.
        SettingsError: the settings file is wrong.
        TrainerFailed: the first model cannot be fitted.
    """
    wanted = [policies] if isinstance(policies, str) else list(policies)
    for name in wanted:
        _valid(name)
    if cost_of_fit is not None and not cost_of_fit > 0:
        raise InputError("--cost-of-fit", cost_of_fit, "a number above zero")
    columns = Columns(
        target=target,
        time=time,
        label_time=label_time,
        id=id,
        features=tuple(features),
        drop=tuple(drop),
    )
    cut = Cut(
        label_delay=_span(label_delay, "--label-delay"),
        train_rows=train_rows,
        batch_rows=batch_rows,
        window=_span(window, "--window"),
    )
    rows = open_history(history, columns, cut, task)
    if metric is not None and metric not in METRICS[rows.task]:
        hint = f"one of {', '.join(METRICS[rows.task])} for a {rows.task} task"
        raise InputError("--metric", metric, hint)
    chosen = terms(rows, _settings(settings), metric=metric, cost_of_fit=cost_of_fit)
    bank = Bank(rows, factory(estimator), metric=metric, seed=seed, model=MODEL)
    timelines = _replay_all(bank, chosen, wanted, progress)
    return _result(bank, chosen, wanted, timelines)


def _valid(name: str) -> None:
    try:
        parse(name)
    except InputError as error:
        raise InputError("--policy", name, error.expected) from None


def _span(given: str | timedelta | None, option: str) -> timedelta | None:
    return parse_span(given, option) if isinstance(given, str) else given


def _settings(given: str | Path | ModelSettings | None) -> ModelSettings | None:
    return load(Path(given)).defaults if isinstance(given, str | Path) else given


def _replay_all(
    bank: Bank, settings: ModelSettings, wanted: Sequence[str], progress: Progress | None
) -> dict[str, Timeline]:
    """Every policy's timeline. `every:1`, the dearest, goes to a process of its own."""
    names = list(dict.fromkeys([NEVER_POLICY, *wanted, EVERY_POLICY]))
    total = len(bank.history.windows)
    prepare(bank, settings)  # once, before the other process gets its copy

    def tell(name: str) -> Callable[[int], None]:
        return (lambda done: progress(name, done, total)) if progress else (lambda done: None)

    aside = _aside(bank, _under(settings, EVERY_POLICY))
    here = [name for name in names if name != EVERY_POLICY or aside is None]
    with half_the_cores(aside is not None):
        found = {name: replay(bank, _under(settings, name), progress=tell(name)) for name in here}
    if aside is not None:
        found[EVERY_POLICY] = aside.result()
        tell(EVERY_POLICY)(total)
    return {name: found[name] for name in names}


def _under(settings: ModelSettings, policy: str) -> ModelSettings:
    retrain = msgspec.structs.replace(settings.retrain, policy=policy)
    return msgspec.structs.replace(settings, retrain=retrain)


def _aside(bank: Bank, settings: ModelSettings) -> Any:
    """A future of the policy's timeline; None where a second process would not pay or cannot be.

    loky (joblib's process pool) needs no `if __name__ == "__main__"` of the caller's script.
    """
    import os

    if (os.cpu_count() or 1) < 2 or bank.history.replayed < _WORTH_A_PROCESS:
        return None
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    try:
        return get_reusable_executor(max_workers=1, timeout=60).submit(replay_aside, bank, settings)
    except (BrokenProcessPool, OSError):
        return None


def _result(
    bank: Bank, settings: ModelSettings, wanted: Sequence[str], timelines: dict[str, Timeline]
) -> Backtest:
    metric = chosen_metric(bank.spec, settings)
    built = bank.first.baseline
    expected = built[0].expected.of(metric) if built and built[0].expected else None
    never = timelines[NEVER_POLICY].mean_loss(metric)
    every = timelines[EVERY_POLICY].mean_loss(metric)
    cost = settings.retrain.cost_of_run
    every_one = {
        name: PolicyResult(
            summary=summarise(
                timeline, never, every, metric=metric, cost_of_fit=cost, expected=expected
            ),
            windows=tuple(timeline.windows),
        )
        for name, timeline in timelines.items()
    }
    asked = {name: every_one[name] for name in dict.fromkeys(wanted)}
    references = {name: every_one[name] for name in (NEVER_POLICY, EVERY_POLICY)}
    facts = _facts(bank, settings, metric, results.number(expected))
    return Backtest(asked, references, facts)


def _facts(bank: Bank, settings: ModelSettings, metric: Metric, expected: float | None) -> Facts:
    history: History = bank.history
    notes = list(history.notes)
    windows = history.windows
    strange = bank.unknown_labels
    if strange:
        notes.append(
            f"{strange:,} labels are of a class the training rows do not have "
            f"({', '.join(bank.unknown_classes())}): as in the service, no model here can answer "
            "it, and those rows count in no loss; take more --train-rows to include it"
        )
    delay = history.labels_known
    return Facts(
        rows=len(history.times),
        train_rows=history.train,
        windows=len(windows),
        features=tuple(bank.spec.columns),
        task=history.task,
        target=history.target,
        metric=metric,
        expected_loss=expected,
        cost_of_fit=settings.retrain.cost_of_run,
        labels_known=delay,
        estimator=bank.described(),
        seed=bank.seed,
        since=iso(windows[0].start),
        until=iso(windows[-1].end),
        settings=differing(settings),
        notes=tuple(notes),
    )
