"""The log against its oracle: any order of everything, and both hold the same."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from logrows import HOUR, LATER, T0, label, row, seen

from core.ledger import Ledger
from monitor.log.log import InferenceLog
from monitor.log.memory import MemoryLog

NUMBERS = st.integers(0, 12)
VALUES = st.sampled_from([None, 0, 1, 2**53 + 1, 0.5, -1.0, True, False, "", "a", "1", "é"])
INPUTS = st.dictionaries(st.sampled_from(["x", "k"]), VALUES, max_size=2)
ROWS = st.lists(st.tuples(NUMBERS, st.integers(0, 3), INPUTS), min_size=1, max_size=4)
SAID = st.lists(st.tuples(NUMBERS, st.integers(28, 32), VALUES), min_size=1, max_size=3)


class Logs(RuleBasedStateMachine):
    """One log on SQLite with a folder, one in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="shelflife-model-")
        home = Path(self.folder.name)
        self.ledger = Ledger(f"sqlite:///{home / 'ledger.db'}").create()
        self.log, self.oracle = InferenceLog(self.ledger, home / "segments"), MemoryLog()

    @rule(rows=ROWS)
    def append(self, rows: list) -> None:
        given = [row(i, event_id=f"e{i}-{e}", inputs=inputs) for i, e, inputs in rows]
        new = self.log.append(given, received=T0)
        assert new == self.oracle.append(given, received=T0)

    @rule(said=SAID)
    def say(self, said: list) -> None:
        given = [label(i, value, days) for i, days, value in said]
        receipt = self.log.append_labels(given, received=T0)
        assert receipt == self.oracle.append_labels(given, received=T0)

    @rule()
    def seal(self) -> None:
        self.log.seal(before=LATER)

    @rule(rows=st.sampled_from([2, 5, 100]))
    def compact(self, rows: int) -> None:
        self.log.compact("m", at=T0, rows=rows)

    @rule(ids=st.sets(NUMBERS, min_size=1, max_size=3))
    def forget(self, ids: set[int]) -> None:
        names = [f"p{i}" for i in ids]
        gone, wanted = self.log.forget("m", names, at=T0), self.oracle.forget("m", names, at=T0)
        assert (gone.rows, gone.labels) == (wanted.rows, wanted.labels)

    @rule(hours=NUMBERS)
    def retain(self, hours: int) -> None:
        """Whole segments stay for one newer row: their rows and labels must be untouched then."""
        since = T0 + hours * HOUR
        before = seen(self.log.read("m"))
        gone = self.log.retain("m", since=since, at=T0)
        after = seen(self.log.read("m"))
        assert len(before) - len(after) == gone.rows
        left = [r for r in after if r["time"] < since]
        assert [r for r in before if r in after] == after
        assert not left or self.log.segments("m")
        # The oracle lets exactly the same rows go.
        lost = [r for r in before if r not in after]
        kept = {r["id"] for r in after}
        assert all(r["time"] < since for r in lost)
        # All rows of an id have one time here: they go together, or not at all. No label is as old
        # as any retention tried, so that only labels of rows that went go too.
        self.oracle.forget("m", {r["id"] for r in lost} - kept, at=T0)

    @invariant()
    def same(self) -> None:
        assert seen(self.log.read("m")) == seen(self.oracle.read("m"))

    @invariant()
    def same_of_a_window_as_of_a_moment(self) -> None:
        then = T0 + timedelta(days=30)
        for query in (
            {"start": T0 + 3 * HOUR, "end": T0 + 9 * HOUR, "known_at": then},
            {"known_after": then, "newest": 3},
            {"labelled": True, "newest": 2, "inputs": ["k"]},
        ):
            found = self.log.read("m", **query)  # type: ignore[arg-type]
            assert found.problems == ()
            assert seen(found) == seen(self.oracle.read("m", **query))  # type: ignore[arg-type]

    @invariant()
    def same_counts(self) -> None:
        mine, wanted = self.log.counts("m"), self.oracle.counts("m")
        for name in ("predictions", "labels", "unknown_labels", "oldest", "newest"):
            assert getattr(mine, name) == getattr(wanted, name), name

    @invariant()
    def no_file_is_orphaned(self) -> None:
        root = self.log.storage.root  # type: ignore[attr-defined]
        assert len(list(root.rglob("*.parquet"))) == self.log.counts("m").segments

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


Logs.TestCase.settings = settings(
    max_examples=int(os.environ.get("LOG_MODEL_EXAMPLES", "5")),
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLogs = Logs.TestCase
