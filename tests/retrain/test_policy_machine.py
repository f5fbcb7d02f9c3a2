"""The policy in its world, in whatever order things happen: windows with good, bad and late labels,
runs that succeed, are refused, fail or hang, promotions taken back, feeds that break.

One model, one policy, weeks on end. After every step the decision is taken as a tick would take it,
and what the settings promise must hold: one run at a time, the cooldown and the budget; never a run
from a broken feed, never twice on the same evidence, never because of the run before; and each
decision says why, and what would change it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.settings import RetrainSettings, span
from core.spec import Feature, ModelSpec
from monitor.results import Performance
from retrain.life import Life
from retrain.policy import BUDGET_SPAN, Decision, PolicyEvidence, decide
from retrain.probe import part, probe

LONG = os.environ.get("SHELFLIFE_CHAOS", "") not in {"", "0"}
WEEK = timedelta(days=7)
ROWS = 60
SPEC = ModelSpec(
    name="m", task="regression", target="y", metric="mae",
    features=(Feature(name="x", kind="numeric"),),
)  # fmt: skip


class PolicyMachine(RuleBasedStateMachine):
    """What a service keeps for the policy, held in memory."""

    @initialize(
        cooldown=st.sampled_from(["7d", "14d", "28d"]),
        budget=st.integers(1, 6),
        policy=st.sampled_from(["default", "default", "every:2", "threshold:0.1", "never"]),
    )
    def begin(self, cooldown: str, budget: int, policy: str) -> None:
        self.settings = RetrainSettings(
            cooldown=cooldown, budget_per_quarter=budget, min_new_labels=50, policy=policy
        )
        self.at = datetime(2026, 1, 1, tzinfo=UTC)
        self.rng = np.random.default_rng(0)
        self.runs: list[tuple[datetime, str]] = []
        self.active = False
        self.state: Any = "healthy"
        self.labels = 0
        self._serve()

    def _serve(self) -> None:
        """A champion begins: its losses on rows it had not seen are a tenth of a standard normal's
        absolute value."""
        outputs = self.rng.normal(size=200)
        reference = np.abs(self.rng.normal(size=200)) / 10
        self.life = Life(probe(SPEC, outputs[:, None]), reference)
        self.promoted, self.refused_labels, self.labels = self.at, 0, 0
        self.age = 0

    # --- what may happen -------------------------------------------------------------------------

    @rule(
        stale=st.sampled_from([0.0, 0.05, 0.5]),
        noise=st.sampled_from([0.1, 0.1, 0.4]),
        weeks=st.integers(1, 4),
    )
    def windows(self, stale: float, noise: float, weeks: int) -> None:
        """Weeks with labels. `stale` can be learned from earlier rows, more noise cannot."""
        for _ in range(weeks):
            self.at += WEEK
            self.age += 1
            x, output = self.rng.normal(size=(2, ROWS))
            y = output + stale * np.sign(x) + noise * self.rng.normal(size=ROWS)
            rows = part(self.life.probe, x[:, None], output[:, None], y)
            self.life.see(rows, at=self.at)
            self.labels += ROWS
        self.state = "healthy"

    @rule()
    def silence(self) -> None:
        """A week without a label."""
        self.at += WEEK
        self.age += 1
        self.state = "insufficient_data"

    @rule()
    def feed_breaks(self) -> None:
        """A week whose rows are not worth a word."""
        self.at += WEEK
        self.age += 1
        self.state = "broken_feed"

    @precondition(lambda self: self.active)
    @rule(end=st.sampled_from(["promoted", "refused", "failed", "abandoned"]))
    def run_ends(self, end: str) -> None:
        started, _ = self.runs[-1]
        self.runs[-1], self.active = (started, end), False
        if end == "promoted":
            self._serve()
        elif end == "refused":
            self.refused_labels = self.labels
            self.life.refused(at=started, fresh=None)

    @rule()
    def tick(self) -> None:
        """Decide, and start what is decided, as a tick does."""
        decision = self._decide()
        if decision.action != "retrain":
            return
        assert not self.active
        assert self.state != "broken_feed"
        assert self.settings.policy != "never"
        assert self.labels >= self.settings.min_new_labels
        recent = [start for start, _ in self.runs if start > self.at - BUDGET_SPAN]
        assert len(recent) < self.settings.budget_per_quarter
        for start, _ in self.runs:
            assert self.at - start >= span(self.settings.cooldown)
        if self.life.refusals:  # what was refused is not tried again on the same rows
            assert self.labels >= self.refused_labels + self.settings.min_new_labels
        self.runs.append((self.at, "running"))
        self.active = True
        # Its own start is no reason for another, and nobody starts a second beside it.
        again = self._decide()
        assert again.action == "wait"
        assert "not finished" in again.reason

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def a_decision_is_explained_and_repeatable(self) -> None:
        if not hasattr(self, "life"):
            return
        first, second = self._decide(), self._decide()
        assert first == second
        assert first.reason
        assert first.would_change or self.settings.policy == "every:2"
        if self.state == "broken_feed":
            assert first.action == "wait"

    @invariant()
    def nothing_is_wanted_right_after_a_promotion(self) -> None:
        """A new champion has no evidence against it, whatever the one before it had."""
        if not hasattr(self, "life") or self.life.series or self.settings.policy == "every:2":
            return
        assert self._decide().action == "wait"

    def _decide(self) -> Decision:
        return decide(self._evidence(), self.settings, at=self.at)

    def _evidence(self) -> PolicyEvidence:
        series, expected = self.life.series, self.life.expected
        loss = series[-1].loss if series and self.state == "healthy" else None
        known = Performance(
            metric="mae", value=loss, low=loss, high=loss, n=ROWS if loss else 0, coverage=1.0,
            expected=expected, tolerated=1.1 * expected, worse=None if loss is None else False,
        )  # fmt: skip
        begun = max([self.promoted, *(start for start, _ in self.runs)])
        return PolicyEvidence(
            version="1",
            state=self.state,
            check_reason="every x is missing",
            performance=known,
            series=tuple(series),
            cost=0.2 * expected,
            windows_old=float(self.age),
            labelled_here=self.labels,
            new_labels=self.labels,
            runs_in_quarter=sum(start > self.at - BUDGET_SPAN for start, _ in self.runs),
            last_run=self.runs[-1][0] if self.runs else None,
            last_outcome=self.runs[-1][1] if self.runs else "",
            windows_since_run=(self.at - begun) / WEEK,
            refusals=self.life.refusals,
            refused_labels=self.refused_labels,
            refused_at=self.life.refused_at,
            active_run="f00" if self.active else "",
            promoted=self.promoted,
        )


TestPolicyMachine = PolicyMachine.TestCase
TestPolicyMachine.settings = settings(
    max_examples=300 if LONG else 12,
    stateful_step_count=60 if LONG else 30,
    deadline=None,
    derandomize=not LONG,
)
