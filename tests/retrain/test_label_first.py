"""Which rows to label first."""

from __future__ import annotations

import numpy as np
import pytest

from retrain.label_first import MOST, RANDOM_SHARE, rank, uncertainty


def test_the_least_certain_first_and_a_share_at_random() -> None:
    ids = [f"r{i}" for i in range(400)]
    outputs = np.linspace(0.5, 0.999, 400)[:, None]  # r0 is the least certain
    found = rank(ids, outputs, probabilities=True)
    drawn = round(MOST * RANDOM_SHARE)
    assert len(found) == MOST
    assert [wish.id for wish in found[:-drawn]] == ids[: MOST - drawn]
    assert len({wish.id for wish in found}) == MOST
    random = [int(wish.id[1:]) for wish in found[-drawn:]]
    assert max(random) > 100  # not from the uncertain ones alone
    assert all("random" in wish.reason for wish in found[-drawn:])
    assert rank(ids, outputs, probabilities=True) == found


def test_drift_weighs_and_unusable_answers_come_last() -> None:
    outputs = np.array([[0.5], [0.6], [np.nan], [0.9]])
    weights = np.array([0.1, 5.0, 9.0, 1.0])
    found = rank(list("abcd"), outputs, probabilities=True, drift=weights, most=3)
    assert found[0].id == "b"
    assert "more common" in found[0].reason
    assert rank([], np.empty((0, 1)), probabilities=True) == ()


def test_uncertainty_of_classes_and_of_numbers() -> None:
    classes = np.array([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
    assert uncertainty(classes, probabilities=True).tolist() == pytest.approx([0.0, 0.66])
    numbers = np.array([[1.0], [2.0], [3.0], [100.0]])
    assert int(np.argmax(uncertainty(numbers, probabilities=False))) == 3
