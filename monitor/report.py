"""An Evidently report of a window beside its baseline, as HTML. The only file that knows Evidently.

Importing Evidently costs seconds and 290 MB, so reports are made in a process of their own:
`python -m monitor.report JOB.json …`, each job naming two Parquet files in the form of
`monitor.baseline.reference_sample`. It is for people to look at; no check waits for it.
"""

from __future__ import annotations

import html
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import InputError
from core.files import write_atomic
from core.spec import ModelSpec
from monitor.measure.performance import encode_labels
from monitor.measure.profile import is_numeric, read_values

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 20_000  # Evidently takes seconds for ten thousand rows; more are sampled
_LEAST_LABELLED = 30  # fewer labelled rows than this and there is no report on performance
_SEED = 0


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the subprocess is asked to render."""

    reference: str  # Parquet files
    current: str
    spec: ModelSpec
    target: str  # path of the HTML
    title: str


def render(
    reference: pd.DataFrame, current: pd.DataFrame, spec: ModelSpec, path: Path, title: str
) -> Path:
    """Write the drift report to `path`, and one on performance beside it where labels allow.

    Args:
        reference: columns `in:<name>`, `out:<name>` and `y` (encoded, NaN where unknown), as
            `monitor.baseline.reference_sample` makes them.
        current: the same columns; `y` holds labels as given, None where there is none. Columns
            without a usable value in either frame are left out and named at the top of the page:
            Evidently refuses the whole report otherwise.

    Returns `path`. The performance report, if any, is `<stem>-performance.html`, linked from it.

    Raises:
        InputError: no column has values in both frames.
    """
    os.environ["DO_NOT_TRACK"] = os.environ["EVIDENTLY_DISABLE_TELEMETRY"] = "1"
    before, now = readable(spec, _thinned(reference)), readable(spec, _thinned(current))
    shared = [
        name
        for name in before
        if name in now and before[name].notna().any() and now[name].notna().any()
    ]
    dropped = [str(name) for name in before if name not in shared]
    if not shared:
        raise InputError("current", "no values", "at least one column with values in both frames")
    notes = [f"reference: {len(before):,} rows, current: {len(now):,} rows"]
    if dropped:
        notes.append(f"left out, no value to compare: {', '.join(dropped)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's and its libraries' own; nobody here can act
        beside = path.with_name(f"{path.stem}-performance.html")
        why = _performance(reference, _encoded(spec, current), spec, beside, title)
        notes.append(why or f'<a href="{html.escape(beside.name)}">performance</a>')
        page = _drift(before[shared], now[shared])
    write_atomic(path, _headed(page, title, notes).encode())
    return path


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if len(frame) <= _MOST_ROWS else frame.sample(_MOST_ROWS, random_state=_SEED)


def _encoded(spec: ModelSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its labels as numbers, NaN where there is none or a bad one."""
    if "y" not in frame.columns:
        return frame
    return frame.assign(y=encode_labels(spec, frame["y"].tolist())[0])


def readable(spec: ModelSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """The spec's columns with one type each, float64 or strings; anything else is missing.

    Args:
        frame: columns `in:<name>` and `out:<name>`; outputs become `output <name>`.
    """
    import pandas as pd

    columns = {f"in:{f.name}": (f.name, f.kind) for f in spec.features}
    columns |= {f"out:{name}": (f"output {name}", "numeric") for name in spec.outputs}
    found: dict[str, Any] = {}
    for key, (name, kind) in columns.items():
        numeric = is_numeric(kind)
        cells = np.full(len(frame), np.nan) if numeric else np.full(len(frame), None, dtype=object)
        if key in frame.columns:
            values = read_values(kind, frame[key])
            cells[values.present] = values.spelled()
        found[name] = pd.Series(cells, dtype=None if numeric else "str")
    return pd.DataFrame(found)


def _drift(reference: pd.DataFrame, current: pd.DataFrame) -> str:
    from evidently import DataDefinition
    from evidently.presets import DataDriftPreset

    numeric = [name for name in reference if reference[name].dtype.kind == "f"]
    other = [name for name in reference if name not in numeric]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=other)
    preset = DataDriftPreset(columns=list(reference.columns))
    return _page(preset, reference, current, definition)


def _performance(
    reference: pd.DataFrame, current: pd.DataFrame, spec: ModelSpec, path: Path, title: str
) -> str:
    """Write the report on labelled rows; or the reason, for people, why there is none."""
    before, now = _labelled(spec, reference), _labelled(spec, current)
    fewest = min(len(before), len(now))
    if fewest < _LEAST_LABELLED:
        return f"no report on performance: {fewest:,} labelled rows"
    if spec.task != "regression" and (
        before["target"].nunique() < 2 or now["target"].nunique() < 2
    ):
        return "no report on performance: the labels are of one class only"
    preset, definition = _task(spec)
    try:
        page = _page(preset, before, now, definition)
    except (ValueError, KeyError, TypeError) as error:  # drift is still worth showing
        return f"no report on performance: Evidently says {str(error)[:200]}"
    notes = [f"labelled rows: reference {len(before):,}, current {len(now):,}"]
    write_atomic(path, _headed(page, f"{title}: performance", notes).encode())
    return ""


def _labelled(spec: ModelSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """Columns `target` and the outputs, of the rows that have all of them."""
    import pandas as pd

    names = [f"out:{name}" for name in spec.outputs]
    if any(name not in frame.columns for name in [*names, "y"]):
        return pd.DataFrame({"target": []})
    usable = frame[[*names, "y"]].apply(pd.to_numeric, errors="coerce")
    usable = _thinned(usable.replace([np.inf, -np.inf], np.nan).dropna())
    if spec.task == "regression":
        return usable.set_axis(["prediction", "target"], axis=1)
    labels = np.asarray([str(label) for label in spec.classes], dtype=object)
    if spec.task == "binary":
        outputs = usable[names].set_axis(["probability"], axis=1)
        return outputs.assign(target=usable["y"].astype(int))
    outputs = usable[names].set_axis(list(labels), axis=1)
    return outputs.assign(target=labels[usable["y"].astype(int)])


def _task(spec: ModelSpec) -> tuple[Any, Any]:
    """Evidently's preset for the task, and what the columns of `_labelled` mean to it."""
    from evidently import (
        BinaryClassification,
        DataDefinition,
        MulticlassClassification,
        Regression,
    )
    from evidently.presets import ClassificationPreset, RegressionPreset

    if spec.task == "regression":
        means = [Regression(target="target", prediction="prediction")]
        columns = ["target", "prediction"]
        return RegressionPreset(), DataDefinition(regression=means, numerical_columns=columns)
    if spec.task == "binary":
        binary = BinaryClassification(target="target", prediction_probas="probability", pos_label=1)
        return ClassificationPreset(), DataDefinition(
            classification=[binary],
            numerical_columns=["probability"],
            categorical_columns=["target"],
        )
    labels = [str(label) for label in spec.classes]
    several = MulticlassClassification(target="target", prediction_probas=labels)
    return ClassificationPreset(), DataDefinition(
        classification=[several], numerical_columns=labels, categorical_columns=["target"]
    )


def _page(preset: Any, reference: pd.DataFrame, current: pd.DataFrame, definition: Any) -> str:
    from evidently import Dataset, Report

    snapshot = Report([preset]).run(  # the current rows come first
        Dataset.from_pandas(current.reset_index(drop=True), data_definition=definition),
        Dataset.from_pandas(reference.reset_index(drop=True), data_definition=definition),
    )
    page: str = snapshot.get_html_str(as_iframe=False)
    return page


def _headed(page: str, title: str, notes: list[str]) -> str:
    """The page with our title and notes on top; notes that are no link are escaped."""
    lines = "".join(
        f"<p>{note if note.startswith('<a ') else html.escape(note)}</p>" for note in notes
    )
    name = html.escape(title)
    page = page.replace("<head>", f"<head><title>{name}</title>", 1)
    head = f'<header style="font-family:sans-serif;margin:1em 2em"><h1>{name}</h1>{lines}</header>'
    return page.replace("<body>", f"<body>{head}", 1)


def main(paths: list[str]) -> int:
    """Render each job and print the path of its page; one that fails spoils only itself."""
    import pandas as pd

    if not paths:
        sys.stderr.write("usage: python -m monitor.report JOB.json …\n")
        return 2
    failed = 0
    for path in paths:
        try:
            job = msgspec.json.decode(Path(path).read_bytes(), type=Job)
            reference, current = pd.read_parquet(job.reference), pd.read_parquet(job.current)
            page = render(reference, current, job.spec, Path(job.target), job.title)
            sys.stdout.write(f"{page}\n")
        except Exception as error:  # whatever Evidently raises: the next job may still render
            failed += 1
            sys.stderr.write(f"{path}: {type(error).__name__}: {error}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
