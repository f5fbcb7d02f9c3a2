"""The classifier two-sample test: can a model tell the window's rows from the baseline's?

Boosted trees learn to on one half of the rows and are scored on the other. If nothing differs,
their scores there are exchangeable between the two samples, whatever was learned, so the area under
the ROC curve is a Mann-Whitney statistic with a known null: the p-value is honest without
permutations (Lopez-Paz & Oquab 2017; ties by the usual correction). Natural variation of the
columns divides the z value as it does in the other tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitor.measure import pvalues
from monitor.measure.profile import ColumnProfile, Values, cells_of

LEAST = 200  # rows of either sample; fewer teach nothing
MOST = 4_000  # rows of either sample that are used, drawn by a seed
_LEVELS = 250  # categories that the trees tell apart


@dataclass(frozen=True)
class Classified:
    """Area under the ROC curve on rows that were not learned from; 0.5 where nothing differs."""

    auc: float
    p: float  # one-sided: trees that learned noise are as often worse than chance as better
    n: int  # rows of the window, both halves
    why: str = ""  # why it could not be measured


def classify(
    profiles: Sequence[ColumnProfile],
    reference: Mapping[str, Values],
    window: Mapping[str, Values],
    *,
    phi: float = 1.0,
    seed: int = 0,
) -> Classified:
    """Both samples held against each other, all columns at once.

    Args:
        reference, window: by `ColumnProfile.key`, each column of as many rows as its sample.
        phi: over-dispersion of rows, at least 1.
    """
    usable = [p for p in profiles if not p.why and p.key in reference and p.key in window]
    if not usable:
        return Classified(0.5, 1.0, 0, "no column can be compared")
    old, new = (table_of(usable, values) for values in (reference, window))
    least = min(len(old), len(new))
    if least < LEAST:
        few = f"{least:,} rows, fewer than the {LEAST:,} a classifier needs"
        return Classified(0.5, 1.0, len(new), few)
    rng = np.random.default_rng(seed)
    old, new = (x[rng.permutation(len(x))[:MOST]] for x in (old, new))
    score, truth = _held_out(usable, old, new, seed)
    return mann_whitney(score[truth], score[~truth], phi, len(new))


def mann_whitney(more: np.ndarray, fewer: np.ndarray, phi: float, rows: int) -> Classified:
    """Area under the curve of two sets of scores and its one-sided p-value under equality."""
    from scipy.stats import rankdata

    n, m = len(more), len(fewer)
    both = np.concatenate([more, fewer])
    auc = float((rankdata(both)[:n].sum() - n * (n + 1) / 2) / (n * m))
    ties = np.unique(both, return_counts=True)[1].astype(np.float64)
    size = n + m
    variance = (size + 1 - (ties**3 - ties).sum() / (size * (size - 1))) / (12 * n * m)
    if variance <= 0:
        return Classified(0.5, 1.0, rows)
    z = (auc - 0.5) / np.sqrt(variance * max(phi, 1.0))
    return Classified(auc, float(pvalues.p_normal(np.array(z))) / 2 if z > 0 else 1.0, rows)


def table_of(profiles: Sequence[ColumnProfile], columns: Mapping[str, Values]) -> np.ndarray:
    """Rows of numbers, and of categories as the baseline's codes; NaN where there is no value."""
    rows = max(columns[p.key].rows for p in profiles)
    found = np.full((rows, len(profiles)), np.nan)
    for index, profile in enumerate(profiles):
        values = columns[profile.key]
        cells = values.values
        if not profile.numeric:
            cells = np.minimum(cells_of(profile, values), _LEVELS)
        found[values.present, index] = cells
    return found


def _held_out(
    profiles: Sequence[ColumnProfile], old: np.ndarray, new: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the rows that were not learned from, and which of them are the window's."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    learn = np.concatenate([old[::2], new[::2]])
    truth = np.repeat([False, True], [len(old[::2]), len(new[::2])])
    weights = np.where(truth, 1 / truth.sum(), 1 / (~truth).sum()) * len(truth) / 2
    model = HistGradientBoostingClassifier(
        max_iter=60,
        max_leaf_nodes=15,
        min_samples_leaf=20,
        early_stopping=False,
        random_state=seed,
        categorical_features=[not profile.numeric for profile in profiles],
    )
    model.fit(learn, truth, sample_weight=weights)
    held = np.concatenate([old[1::2], new[1::2]])
    kind = np.repeat([False, True], [len(old[1::2]), len(new[1::2])])
    return model.decision_function(held), kind
