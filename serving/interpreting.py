"""The preparing subprocess: `python -m serving.interpreting FOLDER PARENT`.

It loads the estimator as far as it is trusted, builds every applicable interpreter, compares each
with the estimator's own answers to real rows of the baseline, times those that pass, and leaves
the files of the one that is picked. `serving.interpreters` starts it, without secrets in its
environment, and reads what it leaves.

FOLDER    job.json      what to do (`Job`)
          model/        the files as registered, verified
          rows.parquet  real rows: columns `in:<name>`
          built/        one folder per candidate
          result.json   written last (`Result`)
"""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from core.errors import ShelflifeError, UntrustedArtifact
from core.files import write_atomic
from core.settings_interpreters import InterpreterSettings
from core.spec import ModelSpec, Scalar
from serving import backends
from serving.backend import Backend, Columns, Model, NotApplicable, Outputs, Subject
from serving.choice import BATCHES, Candidate, Choice, Timing, compare, pick, settle
from serving.columns import columns_of
from serving.shadower import end_with
from serving.store import Sample

_SPEND_S = 0.06  # at most, timing one candidate at one batch size
_MOST_CALLS = 400
_FEWEST_CALLS = 7
_STRANGER = "␀ never seen"  # a category no model was fitted with


class Job(Struct, frozen=True, kw_only=True):
    """What the subprocess is asked to do."""

    model: str
    version: str
    sha256: str
    spec: ModelSpec
    settings: InterpreterSettings
    trust_pickle: bool
    threads: int
    budget_ms: float
    sample: dict[str, list[Scalar]]  # rows to warm workers with, and to prove their answers


class Result(Struct, frozen=True, kw_only=True):
    """What it found; with `error`, why there is no choice."""

    choice: Choice | None = None
    built: str = ""  # name of the chosen candidate's folder
    sample: Sample | None = None
    error: str = ""
    untrusted: bool = False


class _Built(Struct, kw_only=True, eq=False):
    candidate: Candidate
    folder: Path
    model: Model


class _Measuring:
    """One model being measured."""

    def __init__(self, job: Job, folder: Path) -> None:
        from registry.loading import load_estimator

        self.job, self.folder, self.spec = job, folder, job.spec
        estimator = load_estimator(folder / "model", trust_pickle=job.trust_pickle)
        self.rows = _rows(folder, job.spec)
        self.subject = Subject(
            spec=job.spec,
            folder=folder / "model",
            estimator=estimator,
            trust_pickle=job.trust_pickle,
            settings=job.settings,
            sha256=job.sha256,
            sample=self.rows,
        )
        self.built: list[_Built] = []
        self.others: list[Candidate] = []  # refused, or not applicable
        self.expected: Outputs = {}
        self.odd: list[tuple[Columns, Outputs | None]] = []

    def run(self) -> Result:
        started = time.monotonic()
        for name in self._backends():
            self._backend(backends.backend(name))
        passed = [each.candidate for each in self._timed()]
        choice = Choice(
            model=self.job.model,
            version=self.job.version,
            backend="native",
            variant="frame",
            reason="",
            profile=self.job.settings.profile,
            asked=self.job.settings.backend,
            budget_ms=self.job.budget_ms,
            tolerance=self.job.settings.tolerance,
            rows=_length(self.rows),
            candidates=(*passed, *self.others),
            seconds=round(time.monotonic() - started, 2),
            machine=_machine(),
        )
        taken, reason = pick(
            self._eligible(passed), profile=choice.profile, budget_ms=choice.budget_ms
        )
        wanted = self.job.settings.backend
        if wanted not in ("auto", taken.backend):
            reason = f"{wanted} was asked for and did not pass; {reason}"
        [built] = [each for each in self.built if each.candidate is taken]
        outputs = built.model.infer(columns_of(self.spec, self.job.sample))
        return Result(
            choice=settle(choice, taken, reason),
            built=built.folder.name,
            sample=Sample(
                inputs=self.job.sample,
                outputs={name: array.tolist() for name, array in outputs.items()},
            ),
        )

    def _backends(self) -> tuple[str, ...]:
        wanted = self.job.settings.backend
        return backends.NAMES if wanted == "auto" else tuple(dict.fromkeys(("native", wanted)))

    def _eligible(self, passed: list[Candidate]) -> list[Candidate]:
        wanted = self.job.settings.backend
        asked = [each for each in passed if each.backend == wanted]
        return asked or passed

    def _backend(self, backend: Backend) -> None:
        able = backend.capabilities()
        try:
            if able.missing:
                raise NotApplicable(able.missing)
            configured(able.name, self.job.settings)
            self._worth_importing(able.name)
            variants = backend.assess(self.subject)
        except Exception as error:
            self.others.append(_not_applicable(able.name, "", error))
            return
        for variant in variants:
            self._variant(backend, able.name, variant)

    def _worth_importing(self, name: str) -> None:
        """Importing torch takes longer than all the rest; without a GPU it has to be for a reason.

        Raises:
            NotApplicable: there is an exact graph, and no device on which tensors could beat it.
        """
        exact = [each for each in self.built if each.candidate.name == "onnx/float64"]
        asked = self.job.settings.backend == name
        if name == "torch" and exact and not asked and not Path("/dev/nvidiactl").exists():
            raise NotApplicable(
                "no GPU here, and on a processor trees as tensors are slower than onnx/float64 "
                "(docs/backends.md); serving.backend: torch tries it all the same"
            )

    def _variant(self, backend: Backend, name: str, variant: str) -> None:
        folder = self.folder / "built" / f"{name}-{variant}"
        folder.mkdir(parents=True)
        started = time.monotonic()
        try:
            backend.prepare(self.subject, variant, folder)
            model = backend.load(
                folder, self.spec, threads=self.job.threads, trust_pickle=self.job.trust_pickle
            )
        except UntrustedArtifact:
            raise
        except Exception as error:
            if name == "native" and variant == "frame":
                raise
            self.others.append(_not_applicable(name, variant, error))
            return
        seconds = round(time.monotonic() - started, 3)
        candidate = Candidate(
            backend=name,
            variant=variant,
            status="passed",
            device=model.stats().device,
            build_s=seconds,
            bytes=sum(_held(model)),
        )
        judged = self._judged(candidate, model)
        if judged.status == "passed":
            self.built.append(_Built(candidate=judged, folder=folder, model=model))
        else:
            model.unload()
            self.others.append(judged)

    def _judged(self, candidate: Candidate, model: Model) -> Candidate:
        """Compare a candidate with the estimator, which comes first and is compared with itself."""
        if not self.expected:
            self.expected = model.infer(self.rows)
            self.odd = [(odd, _tried(model, odd)) for odd in _odd_rows(self.spec, self.rows)]
            return msgspec.structs.replace(candidate, difference=0.0, changed_labels=0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # what warns per row does not suit
                found = model.infer(self.rows)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            return msgspec.structs.replace(candidate, status="refused", reason=reason)
        tolerance = self.job.settings.tolerance
        verdict = compare(self.spec, self.expected, found, tolerance=tolerance)
        reason = verdict.reason or self._on_odd_rows(model)
        return msgspec.structs.replace(
            candidate,
            status="refused" if reason else "passed",
            reason=reason,
            difference=verdict.difference if np.isfinite(verdict.difference) else None,
            changed_labels=verdict.changed_labels,
        )

    def _on_odd_rows(self, model: Model) -> str:
        for odd, expected in self.odd:
            found = _tried(model, odd)
            if (found is None) != (expected is None):
                did, does = ("refuses", "answers") if expected is None else ("answers", "refuses")
                return f"the estimator {did} a never seen category or a missing value, it {does}"
            if found is not None and expected is not None:
                verdict = compare(self.spec, expected, found, tolerance=self.job.settings.tolerance)
                if verdict.reason:
                    return f"a never seen category or a missing value: {verdict.reason}"
        return ""

    def _timed(self) -> list[_Built]:
        timings: dict[int, list[Timing]] = {id(each): [] for each in self.built}
        total = _length(self.rows)
        for size in BATCHES:
            index = np.resize(np.arange(total), size)
            rows = {name: array[index] for name, array in self.rows.items()}
            for each in self.built:
                timings[id(each)].append(timed(each.model, rows, size))
        for each in self.built:
            each.candidate = msgspec.structs.replace(
                each.candidate, timings=tuple(timings[id(each)])
            )
        return self.built


def configured(name: str, settings: InterpreterSettings) -> None:
    """Nothing, where a backend that needs a server has one.

    Raises:
        NotApplicable: it has none.
    """
    if name == "triton" and not (settings.triton.url and settings.triton.repository):
        raise NotApplicable("set serving.triton.url and serving.triton.repository")
    if name == "ray" and not settings.ray.address:
        raise NotApplicable("set serving.ray.address")


def timed(model: Model, rows: Columns, size: int) -> Timing:
    """Latency of `infer` at one batch size: the median and the 99th percentile of its calls."""
    for _ in range(2):
        model.infer(rows)
    taken: list[float] = []
    end = time.perf_counter() + _SPEND_S
    while len(taken) < _MOST_CALLS and (len(taken) < _FEWEST_CALLS or time.perf_counter() < end):
        started = time.perf_counter()
        model.infer(rows)
        taken.append((time.perf_counter() - started) * 1e3)
    p50, p99 = np.percentile(taken, [50, 99])
    return Timing(
        rows=size, p50_ms=round(float(p50), 5), p99_ms=round(float(p99), 5), calls=len(taken)
    )


def _rows(folder: Path, spec: ModelSpec) -> dict[str, np.ndarray]:
    import pandas as pd

    from core.frames import to_frame

    frame = pd.read_parquet(folder / "rows.parquet")
    clean = to_frame(spec, {name: frame[f"in:{name}"].to_numpy() for name in spec.columns})
    columns = {}
    for feature in spec.features:
        values = clean[feature.name]
        if feature.kind == "categorical":
            texts = values.astype(object).where(values.notna(), None)
            columns[feature.name] = texts.to_numpy(dtype=object)
        else:
            columns[feature.name] = np.ascontiguousarray(values.to_numpy())
    return columns


def _odd_rows(spec: ModelSpec, rows: Columns) -> list[Columns]:
    """One row for everything a caller may send and the baseline may lack."""
    found: list[Columns] = []
    for feature in spec.features:
        first = {name: array[:1].copy() for name, array in rows.items()}
        if feature.kind == "categorical":
            found.append(first | {feature.name: np.array([_STRANGER], dtype=object)})
            if feature.nullable:
                found.append(first | {feature.name: np.array([None], dtype=object)})
        elif feature.nullable:
            found.append(first | {feature.name: np.array([np.nan])})
    return found


def _tried(model: Model, rows: Columns) -> Outputs | None:
    """The answers; None where the model refuses the values."""
    try:
        return model.infer(rows)
    except Exception:  # whatever its library raises for a value it was not fitted with
        return None


def _not_applicable(name: str, variant: str, error: Exception) -> Candidate:
    text = str(error) if isinstance(error, ShelflifeError) else f"{type(error).__name__}: {error}"
    return Candidate(backend=name, variant=variant, status="not_applicable", reason=text[:300])


def _held(model: Model) -> tuple[int, int]:
    stats = model.stats()
    return stats.host_bytes, stats.device_bytes


def _length(rows: Mapping[str, Any]) -> int:
    return len(next(iter(rows.values())))


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} processors"


def main(folder: Path, parent: int) -> None:
    """Measure, and leave the result; the caller is `serving.interpreters`."""
    end_with(parent)
    warnings.simplefilter("ignore")
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    try:
        result = _Measuring(job, folder).run()
    except UntrustedArtifact as error:
        result = Result(error=str(error), untrusted=True)
    except Exception as error:
        result = Result(error=f"{type(error).__name__}: {error}")
    write_atomic(folder / "result.json", msgspec.json.encode(result))
    sys.stdout.flush()
    os._exit(0)  # threads of engines are not waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
