"""shelflife's own policy and gate rule in the interface of a retraining-policy benchmark.

    python bench_policies.py --policies benchmarks/policy_adapter.py:Shelflife --just Shelflife

The benchmark calls `start(ref)` at every promotion, `step(obs)` after every batch, `accept(info)`
with what a held-out comparison found and `outcome(promoted, info)` afterwards. Nothing is decided
here: one batch is one check window, and the observations, the decision and the gate's rule are the
product's (`retrain.life`, `retrain.policy`, `retrain.gate_rule`). The benchmark trains every
candidate itself; so that probes are charged too, `probe_fits` says what they cost, in fits.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.settings import ModelSettings, RetrainSettings, span
from core.spec import Feature, ModelSpec
from monitor.results import Performance
from retrain.gate_rule import ahead
from retrain.life import Life
from retrain.policy import Decision, PolicyEvidence, decide
from retrain.probe import part, probe

_START = datetime(2020, 1, 1, tzinfo=UTC)
_FIT_ROUNDS = 60  # boosting rounds of the benchmark's models; a probe's work is counted in these
_HELD_OUT = 0.2  # share of a window that the benchmark's models are not fitted on


class Shelflife:
    """The default policy with the default settings, one batch a week."""

    gated = True
    slice = "holdout"
    refit = False
    policy = "default"

    def __init__(self) -> None:
        self.settings = ModelSettings(retrain=RetrainSettings(policy=self.policy))
        self.probe_fits = 0.0
        self.decisions: list[Decision] = []
        self.runs: list[tuple[datetime, str]] = []  # start and outcome
        self.at = _START

    def start(self, ref: dict[str, Any]) -> None:
        """A model went into service."""
        self.scale = float(ref["scale"]) if ref["task"] == "reg" else 1.0
        regression = ref["task"] == "reg"
        spec = ModelSpec(
            name="stream",
            task="regression" if regression else "binary",
            target="y",
            features=tuple(
                Feature(name=f"f{i}", kind="numeric", nullable=True)
                for i in range(ref["X"].shape[1])
            ),
            metric="mae" if regression else "brier",
            classes=() if regression else (0, 1),
        )
        self.probe = probe(spec, (ref["pred"] / self.scale)[:, None])
        self.reference = np.asarray(ref["loss"], dtype=np.float64)
        self.fit_work = _FIT_ROUNDS * len(ref["y"]) * (1 - _HELD_OUT) / _HELD_OUT
        self.life = Life(self.probe, self.reference)
        self.first: int | None = None
        self.since = self.at

    def step(self, obs: dict[str, Any]) -> bool:
        """One batch later: what does the policy say?"""
        window = span(self.settings.window)
        self.at = at = _START + (obs["t"] + 1) * window
        if self.first is None:  # batches before were answered by the model before
            self.first = obs["t"]
        predecessor = {batch: losses for batch, losses, _ in obs.get("shadow", ())}
        for batch, inputs, y, pred, _ in obs["labelled"]:
            if batch >= self.first:
                rows = part(self.probe, inputs, pred / self.scale, y / self.scale)
                seen = self.life.see(rows, at=at, predecessor=predecessor.get(batch))
                self.probe_fits += 1.25 * seen.work / self.fit_work  # a quarter for predicting
        evidence = self._evidence(obs, at, window)
        decision = decide(evidence, self.settings.retrain, at=at)
        self.decisions.append(decision)
        return decision.action == "retrain"

    def _evidence(self, obs: dict[str, Any], at: datetime, window: timedelta) -> PolicyEvidence:
        series = self.life.series
        found = Performance(
            metric=self.probe.metric,
            value=series[-1].loss if series else None,
            low=None,
            high=None,
            n=series[-1].rows if series else 0,
            coverage=1.0,
            expected=self.life.expected,
            tolerated=self.life.expected * (1 + self.settings.tolerance),
            worse=False if series else None,
        )
        last = max([self.since, *(start for start, _ in self.runs)])
        return PolicyEvidence(
            version="1",
            state="healthy",
            check_reason="",
            performance=found,
            series=tuple(series),
            cost=obs["cost"],
            windows_old=float(obs["age"]),
            labelled_here=sum(seen.rows for seen in series),
            new_labels=obs["age"] * len(obs["X"]),
            runs_in_quarter=sum(at - start < timedelta(days=90) for start, _ in self.runs),
            last_run=self.runs[-1][0] if self.runs else None,
            last_outcome=self.runs[-1][1] if self.runs else "",
            windows_since_run=(at - last) / window,
            refusals=self.life.refusals,
            refused_at=self.life.refused_at,
        )

    def accept(self, info: dict[str, Any]) -> bool:
        """The gate's rule on a candidate's held-out rows."""
        return ahead(info["gain"], info["z"], 1)

    def outcome(self, promoted: bool, info: dict[str, Any]) -> None:
        """What became of the run that `step` asked for."""
        self.runs.append((self.at, "promoted" if promoted else "refused"))
        if promoted:
            expected = max(float(self.reference.mean()), info["fresh"])
            self.life = Life(self.probe, self.reference, expected=expected)
        else:
            self.life.refused(at=self.at, fresh=info.get("fresh"))
