"""Which interpreter is to execute a model: what was measured, and the rule that picks.

Pure: `compare` judges answers, `pick` decides, both without I/O; `read` and `write` keep the table
of a version beside the prepared versions, for people (`serving.interpreting` measures).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from core.files import write_atomic
from core.settings_interpreters import Profile
from core.spec import ModelSpec
from serving.backend import Outputs

BATCHES = (1, 32, 1024)  # rows at which candidates are timed
#: A probability this near to one half (or to the next class's) is a tie, and nobody's label.
TIE = 1e-9
#: Candidates within this factor of the best are alike; the one nearest to the estimator is taken.
ALIKE = 1.25

Status = Literal["chosen", "passed", "refused", "not_applicable"]


class Timing(Struct, frozen=True, kw_only=True):
    """One batch size: from column arrays to outputs, in one thread of the preparing process."""

    rows: int
    p50_ms: float
    p99_ms: float
    calls: int

    @property
    def rows_per_s(self) -> float:
        """Rows answered in a second, one batch after the other."""
        return self.rows / self.p50_ms * 1e3 if self.p50_ms else 0.0


class Candidate(Struct, frozen=True, kw_only=True):
    """One variant of one backend."""

    backend: str
    variant: str
    status: Status
    reason: str = ""  # why it was refused, or does not apply
    device: str = "cpu"
    difference: float | None = None  # largest, from the estimator's own answers
    changed_labels: int | None = None
    timings: tuple[Timing, ...] = ()
    build_s: float | None = None  # conversion and loading
    bytes: int = 0  # that the loaded model holds

    @property
    def name(self) -> str:
        """`onnx/float64`."""
        return f"{self.backend}/{self.variant}" if self.variant else self.backend

    def timing(self, rows: int) -> Timing | None:
        """The timing at a batch size."""
        return next((each for each in self.timings if each.rows == rows), None)


class Choice(Struct, frozen=True, kw_only=True):
    """What was measured for a version, and what was picked."""

    model: str
    version: str
    backend: str
    variant: str
    reason: str  # a sentence
    profile: Profile
    asked: str = "auto"  # the setting `serving.backend` under which it was made
    budget_ms: float  # of the `latency` profile
    tolerance: float
    rows: int  # real rows that were compared
    candidates: tuple[Candidate, ...]
    seconds: float = 0.0  # that measuring took
    machine: str = ""

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was picked; None where nothing was measured."""
        return next((each for each in self.candidates if each.status == "chosen"), None)


class Verdict(Struct, frozen=True, kw_only=True):
    """How near a candidate's answers are to the estimator's."""

    difference: float
    changed_labels: int
    reason: str  # empty: near enough


def compare(spec: ModelSpec, expected: Outputs, found: Outputs, *, tolerance: float) -> Verdict:
    """Hold answers to the same rows against each other.

    Args:
        expected: the estimator's, float64 (rows,) per output.
        tolerance: largest difference allowed: of a probability, or of a prediction in units of the
            standard deviation of the expected ones.
    """
    want = np.column_stack([expected[name] for name in spec.outputs])
    have = np.column_stack([found[name] for name in spec.outputs])
    if have.shape != want.shape:
        return Verdict(difference=float("inf"), changed_labels=0, reason="a different shape")
    if not np.isfinite(have).all():
        return Verdict(difference=float("inf"), changed_labels=0, reason="NaN or infinite answers")
    gaps = np.abs(have - want)
    if spec.task == "regression":
        spread = float(want.std()) or max(1.0, float(np.abs(want).max()))
        gaps = gaps / spread
    largest = float(gaps.max(initial=0.0))
    changed = 0 if spec.task == "regression" else _changed(want, have)
    off = int((gaps.max(axis=1) > tolerance).sum()) if len(gaps) else 0
    reasons = []
    if off:
        reasons.append(
            f"{off} of {len(want)} rows differ by more than {tolerance:g} (largest {largest:.2g})"
        )
    if changed:
        reasons.append(f"{changed} of {len(want)} labels change")
    return Verdict(difference=largest, changed_labels=changed, reason="; ".join(reasons))


def _changed(want: np.ndarray, have: np.ndarray) -> int:
    if want.shape[1] == 1:
        clear = np.abs(want[:, 0] - 0.5) > TIE
        return int((((want[:, 0] > 0.5) != (have[:, 0] > 0.5)) & clear).sum())
    ordered = np.sort(want, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > TIE
    return int(((want.argmax(axis=1) != have.argmax(axis=1)) & clear).sum())


def pick(
    candidates: Sequence[Candidate], *, profile: Profile, budget_ms: float
) -> tuple[Candidate, str]:
    """The best of the candidates that passed, and a sentence that says why.

    `latency`: the lowest p99 of one row, among those within the budget where there are any.
    `throughput`: the most rows a second at the largest batch. Candidates within a quarter of the
    best (by p99 or by median) are alike, and the one nearest to the estimator's answers is taken;
    a GPU only where it is the best itself: it is never chosen where it is slower.

    Args:
        candidates: at least one of them has passed.
    """
    passed = [each for each in candidates if each.status in ("passed", "chosen") and each.timings]
    if profile == "latency":
        costs = {each.name: each.timings[0].p99_ms for each in passed}
        medians = {each.name: each.timings[0].p50_ms for each in passed}
        within = [each for each in passed if costs[each.name] <= budget_ms]
        what = "the lowest p99 of one row"
    else:
        costs = {each.name: 1e3 / max(each.timings[-1].rows_per_s, 1e-9) for each in passed}
        medians, within = costs, passed
        what = f"the most rows a second, {passed[0].timings[-1].rows} at a time"
    field = within or passed
    best = min(field, key=lambda each: costs[each.name])

    def near(each: Candidate) -> bool:
        # A 99th percentile of few calls is the machine's noise as much as the candidate's.
        close = any(of[each.name] <= ALIKE * of[best.name] for of in (costs, medians))
        return each is best or (close and each.device == "cpu")

    alike = [each for each in field if near(each)]
    taken = min(alike, key=lambda each: (each.difference or 0.0, costs[each.name]))
    if profile == "latency":
        figure = f"{costs[taken.name]:.3g} ms"
    else:
        figure = f"{taken.timings[-1].rows_per_s:,.0f}"
    note = "" if within else f"; none keeps the budget of {budget_ms:g} ms"
    why = "" if taken is best else f" (alike with {best.name}, and nearer to the estimator)"
    return taken, f"{taken.name} has {what}: {figure}{why}{note}"


def settle(choice: Choice, taken: Candidate, reason: str) -> Choice:
    """The choice with one candidate marked as chosen."""
    marked = tuple(
        msgspec.structs.replace(
            each,
            status="chosen"
            if each is taken
            else ("passed" if each.status == "chosen" else each.status),
        )
        for each in choice.candidates
    )
    return msgspec.structs.replace(
        choice, backend=taken.backend, variant=taken.variant, reason=reason, candidates=marked
    )


def place(home: Path, model: str, version: str) -> Path:
    """Where the table of a version is kept."""
    return home / "serving" / "choices" / model / f"{version}.json"


def write(home: Path, choice: Choice) -> None:
    """Keep the table of a version."""
    path = place(home, choice.model, choice.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.encode(choice))


def read(home: Path, model: str, version: str) -> Choice | None:
    """The table of a version; None where nothing was measured for it."""
    try:
        data = place(home, model, version).read_bytes()
        return msgspec.json.decode(data, type=Choice)
    except (OSError, msgspec.DecodeError):
        return None
