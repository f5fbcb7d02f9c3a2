"""Observations of a real log: once a window, each label once, the same when looked at again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.settings import ModelSettings
from core.spec import ModelSpec
from monitor import baseline as baselines
from monitor.baseline import Baseline
from monitor.log.log import InferenceLog
from monitor.measure.performance import encode_labels
from retrain.observing import Normal, expected_loss, look, observations, record
from retrain.probe import Observation

START = datetime(2020, 1, 1, tzinfo=UTC)
PROMOTED = START + 600 * timedelta(minutes=30)  # the champion's first row; labels are a day late
DAY = timedelta(days=1)
SETTINGS = ModelSettings(window="4d", min_rows=50)


@pytest.fixture
def world(
    open_log: Callable[..., InferenceLog], spec: ModelSpec
) -> Callable[[bool], tuple[InferenceLog, Baseline, pd.DataFrame]]:
    def make(turned: bool) -> tuple[InferenceLog, Baseline, pd.DataFrame]:
        log = open_log(turned)
        old = log.read(spec.name, end=PROMOTED, roles=("history",), labelled=True)
        y, _ = encode_labels(spec, old.meta["label"].tolist())
        times = [moment.to_pydatetime() for moment in old.meta["time"]]
        made = baselines.build(
            spec, old.inputs, old.outputs, y, times,
            created=PROMOTED, how="reference", trained_until=times[-1],
        )  # fmt: skip
        sample = baselines.reference_sample(old.inputs, old.outputs, y, times)
        return log, made, sample

    return make


def walk(
    log: InferenceLog,
    made: Baseline,
    sample: pd.DataFrame,
    *,
    every: timedelta,
    until: float = 18.0,
    eager: bool = False,
) -> list[Observation]:
    """Look every so often, keep what is found."""
    expected = expected_loss(made, "brier")
    assert expected is not None
    at, found = PROMOTED, list[Observation]()
    while at <= PROMOTED + until * DAY:
        seen = look(
            log.ledger, log, made, sample, "1", SETTINGS,
            promoted=PROMOTED, normal=Normal(expected=expected), eager=eager, at=at,
        )  # fmt: skip
        if seen is not None:
            with log.ledger.write() as tx:
                record(tx, log.ledger, "toy", "1", seen)
                record(tx, log.ledger, "toy", "1", seen)  # a repeated tick changes nothing
            found.append(seen)
        at += every
    return found


@pytest.mark.parametrize("every", [timedelta(hours=6), timedelta(days=1), timedelta(days=4)])
def test_every_label_is_in_one_observation_however_often_one_looks(
    world: Any, every: timedelta
) -> None:
    log, made, sample = world(True)
    found = walk(log, made, sample, every=every)
    # 900 rows half an hour apart, the last label known 18.75 + 1 days after the promotion.
    known = 17 * 48
    assert sum(seen.rows for seen in found) == pytest.approx(known, abs=4 * 48 + 1)
    assert 3 <= len(found) <= 5
    assert sum(seen.windows for seen in found) == pytest.approx(found[-1].rows and 4.0, abs=0.8)
    assert found[0].gains == {}
    # The relation turned round: what earlier rows teach saves a great deal.
    assert all(min(seen.gains.values()) > 0.02 for seen in found[1:])
    assert found[-1].loss > 2 * found[-1].expected
    with log.ledger.read() as tx:
        kept = observations(tx, "toy", "1", since=PROMOTED, at=found[-1].at + DAY)
    assert list(kept) == found


def test_nothing_to_learn_where_nothing_changed(world: Any) -> None:
    log, made, sample = world(False)
    found = walk(log, made, sample, every=DAY)
    assert np.mean([seen.gains["long"] for seen in found[1:]]) < 0.01
    assert all(abs(seen.growth[0]) < 3 for seen in found)


def test_proven_harm_does_not_wait_for_a_whole_window(world: Any) -> None:
    log, made, sample = world(True)
    eager = walk(log, made, sample, every=DAY, until=5.0, eager=True)
    assert eager[0].at < PROMOTED + 4 * DAY
    assert all(seen.rows >= SETTINGS.min_rows for seen in eager)


def test_looked_at_again_an_observation_is_the_same(world: Any) -> None:
    log, made, sample = world(True)
    found = walk(log, made, sample, every=DAY)
    expected = expected_loss(made, "brier")
    assert expected is not None
    again = look(
        log.ledger, log, made, sample, "1", SETTINGS,
        promoted=PROMOTED, normal=Normal(expected=expected), eager=False, at=found[2].at,
    )  # fmt: skip
    assert again == found[2]


def test_another_version_and_an_unlabelled_stretch_have_none(world: Any) -> None:
    log, made, sample = world(True)
    for version, at in (("2", PROMOTED + 10 * DAY), ("1", PROMOTED + DAY)):
        seen = look(
            log.ledger, log, made, sample, version, SETTINGS,
            promoted=PROMOTED, normal=Normal(expected=0.2), eager=True, at=at,
        )  # fmt: skip
        assert seen is None
