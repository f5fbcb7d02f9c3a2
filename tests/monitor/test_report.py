"""A real Evidently page, rendered as the service does it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from core.spec import infer_spec
from monitor.baseline import reference_sample

RNG = np.random.default_rng(41)
#: Evidently's own numbers on the same rows, from its registry of statistics.
COMPARE = """
import json, sys
import pandas as pd
from evidently.legacy.calculations.stattests.hellinger_distance import _hellinger_distance
from evidently.legacy.calculations.stattests.jensenshannon import _jensenshannon
from evidently.legacy.calculations.stattests.psi import _psi
from evidently.legacy.calculations.stattests.wasserstein_distance_norm import (
    _wasserstein_distance_norm,
)
from evidently.legacy.core import ColumnType
a, b = pd.read_parquet(sys.argv[1]), pd.read_parquet(sys.argv[2])
print(json.dumps({
    "js": _jensenshannon(a["in:country"], b["in:country"], ColumnType.Categorical, 0.1)[0],
    "psi": _psi(a["in:country"], b["in:country"], ColumnType.Categorical, 0.1)[0],
    "hellinger": _hellinger_distance(
        a["in:country"], b["in:country"], ColumnType.Categorical, 0.1
    )[0],
    "wasserstein": _wasserstein_distance_norm(
        a["in:age"], b["in:age"], ColumnType.Numerical, 0.1
    )[0],
}))
"""


def frame(n: int, shift: float) -> pd.DataFrame:
    age = RNG.normal(40 + shift, 10, n)
    return pd.DataFrame({
        "age": age,
        "country": RNG.choice(["UK", "DE", "FR"], n, p=[0.6, 0.3, 0.1]),
        "gone": age,
        "mixed": age,
    })  # fmt: skip


def ours(reference: pd.DataFrame, current: pd.DataFrame) -> dict[str, float]:
    from monitor.measure import effects
    from monitor.measure.profile import count, profile_column, read_values

    def counts(column: str) -> tuple[np.ndarray, np.ndarray]:
        old = read_values("categorical", reference[column])
        profile = profile_column("x", "input", "categorical", old)
        new = read_values("categorical", current[column])
        return count(profile, new), count(profile, old)

    window, baseline = counts("in:country")
    age = np.sort(reference["in:age"].to_numpy()), np.sort(current["in:age"].to_numpy())
    return {
        "js": effects.jensen_shannon(window, baseline),
        "psi": effects.psi(window, baseline),
        "hellinger": effects.hellinger(window, baseline),
        "wasserstein": effects.wasserstein(*age) / age[0].std(),
    }


def test_reports_are_rendered_in_a_subprocess(tmp_path: Path) -> None:
    old, new = frame(600, 0), frame(400, 6)
    spec = infer_spec("shop", old, target="bought", task="binary", classes=("no", "yes"))
    p, q = RNG.uniform(size=600), RNG.uniform(size=400)
    reference = reference_sample(
        old, pd.DataFrame({"probability": p}), (RNG.uniform(size=600) < p).astype(float), None
    )
    new["gone"] = np.nan  # Evidently refuses the whole report for such a column
    new.loc[0, "age"] = np.nan
    current = new.add_prefix("in:").assign(**{"out:probability": q, "y": None})
    current["y"] = [
        ["no", "yes"][int(u < v)] for u, v in zip(RNG.uniform(size=400), q, strict=True)
    ]
    current.loc[:199, "y"] = None  # labels that have not arrived yet
    for name, part in (("reference", reference), ("current", current)):
        part.to_parquet(tmp_path / f"{name}.parquet", index=False)
    job = {
        "reference": str(tmp_path / "reference.parquet"),
        "current": str(tmp_path / "current.parquet"),
        "spec": json.loads(msgspec.json.encode(spec)),
        "target": str(tmp_path / "out" / "incident-1.html"),
        "title": "incident 1: <b>Brier</b> 0.213",
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "bad.json").write_text(json.dumps(job | {"current": "nowhere.parquet"}))
    command = [sys.executable, "-m", "monitor.report"]
    done = subprocess.run(
        [*command, str(tmp_path / "bad.json"), str(tmp_path / "job.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1  # the bad one failed, the other was rendered all the same
    assert "bad.json: FileNotFoundError" in done.stderr
    assert done.stdout.strip() == job["target"]

    page = (tmp_path / "out" / "incident-1.html").read_text()
    assert "<h1>incident 1: &lt;b&gt;Brier&lt;/b&gt; 0.213</h1>" in page
    assert "left out, no value to compare: gone" in page
    assert 'href="incident-1-performance.html"' in page
    assert "country" in page
    assert len(page) > 1_000_000  # Evidently's page with its scripts, readable offline
    performance = (tmp_path / "out" / "incident-1-performance.html").read_text()
    assert "labelled rows: reference 600, current 200" in performance
    assert "Precision" in performance

    known = current.dropna(subset="in:age")
    known.to_parquet(tmp_path / "known.parquet")
    paths = [job["reference"], str(tmp_path / "known.parquet")]
    compared = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARE, *paths],
        capture_output=True,
        text=True,
        check=True,
        env={"DO_NOT_TRACK": "1", "EVIDENTLY_DISABLE_TELEMETRY": "1", "HOME": str(tmp_path)},
    )
    theirs = json.loads(compared.stdout)
    mine = ours(reference, known)
    for name, value in theirs.items():
        assert abs(mine[name] - value) < 1e-9, name


def test_without_a_job_it_says_how_to_use_it() -> None:
    from monitor.report import main

    assert main([]) == 2
