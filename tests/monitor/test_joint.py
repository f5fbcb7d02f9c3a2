"""What columns do together: pairs, the classifier, texts, Evidently's metrics by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import cityblock
from sklearn.metrics import roc_auc_score

from core.settings import ModelSettings
from core.settings_monitor import EvidentlyMetric
from core.spec import infer_spec
from monitor import joint, named
from monitor.baseline import build, read_columns, reference_of, reference_sample, sorted_reference
from monitor.measure import classifier, drift, effects, pairs
from monitor.measure.merging import merged, part_of, profile_of
from monitor.measure.profile import profile_column, read_values
from monitor.measure.tally import Layout
from monitor.measure.together import judge_pairs
from shelflife import compare

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


def table(rng: np.random.Generator, n: int, together: float = 0.0) -> dict[str, np.ndarray]:
    """Eight columns of many shapes; `a` and `b` correlate by `together`."""
    x = rng.normal(size=(n, 8))
    x[:, 1] = together * x[:, 0] + np.sqrt(1 - together**2) * x[:, 1]
    x[:, 2] = np.exp(x[:, 2])
    x[:, 3] = x[:, 4] ** 2 + 0.1 * x[:, 3]  # depends, without correlation
    x[:, 5] = np.round(x[:, 5])
    x[:, 6] = x[:, 7] + 0.2 * x[:, 6]  # correlates at .98
    return dict(zip("abcdefgh", x.T, strict=True))


def values(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    return {f"input:{k}": read_values("numeric", pd.Series(v)) for k, v in columns.items()}


@pytest.fixture(scope="module")
def known() -> tuple[Layout, pairs.PairBaseline]:
    read = values(table(np.random.default_rng(1), 8000))
    layout = Layout.of([profile_column(k[6:], "input", "numeric", v) for k, v in read.items()])
    found = pairs.baseline_of(layout, read, np.arange(8000) // 100)
    assert found is not None
    assert found.phi < 1.15  # rows are independent
    return layout, found


def test_correlations_are_numpys_of_the_scores(known: tuple[Layout, pairs.PairBaseline]) -> None:
    layout, baseline = known
    scores = pairs.scored(layout.numeric, values(table(np.random.default_rng(2), 500)))
    wanted = np.corrcoef(scores, rowvar=False)[np.triu_indices(8, 1)]
    found = [moved.now for moved in pairs.compared(baseline, scores)]
    assert found == pytest.approx(np.clip(wanted, -0.999, 0.999).tolist(), abs=1e-9)


def test_pairs_are_as_rarely_called_moved_as_they_say(
    known: tuple[Layout, pairs.PairBaseline],
) -> None:
    """28 pairs of 200 windows, dependent ones among them, at one in a hundred: 0.5 to 1.4 times."""
    layout, baseline = known
    rng = np.random.default_rng(3)
    p = [
        [m.p for m in pairs.compared(baseline, pairs.scored(layout.numeric, values(table(rng, n))))]
        for n in (60, 300) * 100
    ]
    assert 0.5 <= (np.array(p) < 0.01).mean() / 0.01 <= 1.4


def test_a_change_of_correlation_alone_is_found_in_the_first_hour() -> None:
    rng = np.random.default_rng(4)
    base = table(rng, 6000)
    frame = pd.DataFrame(base)
    spec = infer_spec("m", frame, target="y", task="regression")
    times = [START + HOUR * (i // 100) for i in range(6000)]
    made = build(
        spec, frame, None, None, times, created=START, how="reference", trained_until=None,
        every=HOUR, window=24 * HOUR,
    )  # fmt: skip
    reference = reference_of(made)
    budget = drift.Budget(false_alarms=1.0, every=HOUR, window=24 * HOUR, min_rows=50)
    rows = [table(rng, 200) for _ in range(23)] + [table(rng, 200, together=0.6)]
    window = {k: np.concatenate([r[k] for r in rows]) for k in base}
    ages = np.repeat(np.arange(24)[::-1], 200) * 3600.0 + 1
    order = rng.permutation(len(ages))  # rows out of order of time
    window, ages = {k: v[order] for k, v in window.items()}, ages[order]
    moments = (START + 80 * HOUR).timestamp() - ages
    seen = drift.window_of(reference, values(window), ages, moments, budget)
    sample = sorted_reference(made, reference_sample(frame, None, None, times))
    single = drift.measure(reference, made.columns, sample, seen, budget)
    assert not any(column.drifted for column in single)
    [found] = judge_pairs(reference, seen, budget)
    assert (found.column, found.kind, found.drifted) == ("a with b", "pair", True)
    assert found.statistics[1].over_s == 3600


def test_the_classifiers_p_value_is_mann_whitneys() -> None:
    rng = np.random.default_rng(5)
    for more, fewer in (
        (rng.normal(0.2, 1, 300), rng.normal(size=200)),
        (rng.poisson(2.2, 300).astype(float), rng.poisson(2, 200).astype(float)),
    ):
        found = classifier.mann_whitney(more, fewer, 1.0, 300)
        theirs = stats.mannwhitneyu(
            more, fewer, alternative="greater", method="asymptotic", use_continuity=False
        )
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
        truth = np.repeat([1, 0], [300, 200])
        auc = roc_auc_score(truth, np.concatenate([more, fewer]))
        assert found.auc == pytest.approx(auc, abs=1e-9)
    same = classifier.mann_whitney(np.ones(9), np.ones(9), 1.0, 9)
    assert (same.auc, same.p) == (0.5, 1.0)


def test_total_variation_is_half_scipys_cityblock_distance() -> None:
    w, r = np.array([5, 3, 2]), np.array([40, 50, 10])
    assert effects.total_variation(w, r) == pytest.approx(cityblock(w / 10, r / 100) / 2, abs=1e-12)


def test_the_classifier_tells_what_no_column_and_no_pair_shows() -> None:
    rng = np.random.default_rng(6)
    old, alike = table(rng, 2000), table(rng, 1500)
    half = [table(rng, 750, sign * 0.9) for sign in (1, -1)]  # a correlation of either sign
    torn = {k: np.concatenate([h[k] for h in half]) for k in old}
    assert compare(old, alike, classifier=True).drifted == ()
    found = compare(old, torn, classifier=True)
    assert found.drifted == ("all columns",)
    assert "together: all columns" in found.summary()
    few = compare(old, {k: v[:100] for k, v in alike.items()}, classifier=True)
    assert "100 rows, fewer than the 200" in few.joint[-1].why


def test_profiles_of_parts_merge_into_the_profile_of_the_whole() -> None:
    rng = np.random.default_rng(7)
    columns: list[tuple[Any, pd.Series[Any]]] = [
        ("numeric", pd.Series(np.where(rng.random(3000) < 0.1, np.nan, rng.lognormal(size=3000)))),
        ("integer", pd.Series(rng.poisson(3, 3000))),
        ("categorical", pd.Series([f"level {i}" for i in rng.zipf(1.5, 3000) % 400])),
        ("boolean", pd.Series(rng.random(3000) < 0.3)),
        ("numeric", pd.Series([None] * 3000, dtype=object)),
    ]
    for kind, column in columns:
        whole = profile_column("x", "input", kind, read_values(kind, column))
        cuts = [column[1700:], column[:40], column[40:40], column[40:1700]]
        parts = [part_of(kind, read_values(kind, piece)) for piece in cuts]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            assert profile_of("x", "input", merged([parts[i] for i in order])) == whole
        pairwise = merged([merged(parts[:2]), merged(parts[2:])])
        assert profile_of("x", "input", pairwise) == whole


# -- Evidently's metrics and texts in a check ---------------------------------------------------


def parts_of(columns: dict[str, Any], window: dict[str, Any]) -> joint.Parts:
    frame, now = pd.DataFrame(columns), pd.DataFrame(window)
    spec = infer_spec("m", frame, target="y", task="regression")
    times = [START + i * timedelta(minutes=10) for i in range(len(frame))]
    made = build(
        spec, frame, None, None, times, created=START, how="reference", trained_until=None,
        every=HOUR, window=24 * HOUR,
    )  # fmt: skip
    budget = drift.Budget(false_alarms=1.0, every=HOUR, window=24 * HOUR, min_rows=50)
    reference, read = reference_of(made), read_columns(spec, now, None)
    ages = np.linspace(86_000, 1, len(now))
    seconds = START.timestamp() + 40 * 86_400 - ages
    return joint.Parts(
        spec, made.columns, reference, reference_sample(frame, None, None, times), read,
        drift.window_of(reference, read, ages, seconds, budget), now, pd.DataFrame(index=now.index),
        ages, seconds, budget,
    )  # fmt: skip


def test_named_metrics_have_lines_and_broken_ones_say_so() -> None:
    rng = np.random.default_rng(8)
    old = {"x": rng.normal(size=1600), "c": rng.choice(list("ab"), 1600)}
    new = {"x": rng.normal(2.0, 1, size=200), "c": rng.choice(list("ab"), 200)}
    wanted = (
        EvidentlyMetric(metric="QuantileValue", column="x", options={"quantile": 0.9}),
        EvidentlyMetric(metric="StdValue", column="x", above=3.0),
        EvidentlyMetric(metric="DriftedColumnsCount", part="share", above=0.9),
        EvidentlyMetric(metric="MeanValue", column="x", above=0.5, below=-0.5),
        EvidentlyMetric(metric="NoSuchMetric"),
        EvidentlyMetric(metric="MeanValue", column="gone"),
        EvidentlyMetric(metric="MeanValue", column="c"),
        EvidentlyMetric(metric="DriftedColumnsCount"),
    )
    settings = ModelSettings(check_every="1h", evidently=wanted)
    found = {
        c.column: c
        for c in joint.measure(parts_of(old, new), settings, at=START)
        if c.kind != "pair"
    }
    assert found["QuantileValue(x)"].drifted
    assert not found["StdValue(x)"].drifted
    mean = next(c for c in found.values() if c.column == "MeanValue(x)")
    assert mean.statistics[0].value == pytest.approx(new["x"].mean(), rel=1e-9)
    assert (mean.drifted, mean.statistics[0].threshold) == (True, 0.5)
    assert not found["DriftedColumnsCount().share"].drifted
    assert "evidently.metrics has no NoSuchMetric" in found["NoSuchMetric()"].why
    assert "no column 'gone'" in found["MeanValue(gone)"].why
    assert found["MeanValue(c)"].why
    assert "`part` is one of: count, share" in found["DriftedColumnsCount()"].why
    assert not any(c.drifted for c in found.values() if c.why)


def test_texts_are_watched_by_their_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)

    def texts(n: int, words: int) -> list[str]:
        return [" ".join(["word"] * int(k)) for k in rng.poisson(words, n) + 1]

    old, new = {"t": texts(2000, 6)}, {"t": texts(300, 12)}
    settings = ModelSettings(check_every="1h", text=("t", "gone"))
    parts = parts_of(old, new)
    real = named.described

    def without_words(rows: Any, descriptor: str) -> np.ndarray:
        if descriptor == "unknown words":  # NLTK's lists are not there
            raise named.Unknown("Evidently says LookupError: Resource words not found")
        return real(rows, descriptor)

    monkeypatch.setattr(named, "described", without_words)
    found = {c.column: c for c in joint.measure(parts, settings, at=START)}
    assert found["t (length)"].drifted
    assert found["t (length)"].statistics[-1].name in drift.DECIDING
    assert "words not found" in found["t (unknown words)"].why
    assert found["gone"].why == "the model has no such column"
    assert real(["ab1!", None, 3.0], "non-letters")[0] == pytest.approx(50)
    assert np.isnan(real(["ab1!", None, 3.0], "length")[1:]).all()


def test_the_classifier_runs_at_its_own_rhythm() -> None:
    day = timedelta(days=1)
    due = [joint.due(START + i * HOUR, day, HOUR) for i in range(48)]
    assert [i for i, now in enumerate(due) if now] == [0, 24]
    rng = np.random.default_rng(10)
    parts = parts_of(table(rng, 1500), table(rng, 400))
    settings = ModelSettings(check_every="1h", classifier_every="1d")
    [found] = [c for c in joint.measure(parts, settings, at=START) if c.kind == "rows"]
    assert not found.drifted
    assert not found.why
    assert not [c for c in joint.measure(parts, settings, at=START + HOUR) if c.kind == "rows"]
    assert SimpleNamespace(**{s.name: s.value for s in found.statistics}).auc == pytest.approx(
        0.5, abs=0.1
    )
