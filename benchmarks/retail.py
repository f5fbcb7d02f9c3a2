"""What is possible on the demo's stream, and which promise of a first model is honest.

    .venv/bin/python benchmarks/retail.py

Prints the Brier score over the replay of version 1 frozen and of a model refitted every month on
all labels known by then; and what four ways of expecting version 1's performance promise beside
what April 2010 realised. docs/architecture.md takes its figures from here. Deterministic; nothing
is timed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, TimeSeriesSplit

from shelflife.demo import story


def answers(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Probabilities for `test` by a model fitted on `train`."""
    model = story.first_model().fit(train[story.INPUTS], train[story.TARGET])
    found: np.ndarray = model.predict_proba(test[story.INPUTS])[:, 1]
    return found


def brier(probability: np.ndarray, frame: pd.DataFrame) -> float:
    return float(((probability - frame[story.TARGET].to_numpy()) ** 2).mean())


def expected(known: pd.DataFrame, folds: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Brier score of out-of-fold answers."""
    inputs, y = known[story.INPUTS], known[story.TARGET].to_numpy()
    losses = []
    for train, test in folds:
        model = clone(story.first_model()).fit(inputs.iloc[train], y[train])
        losses.append((model.predict_proba(inputs.iloc[test])[:, 1] - y[test]) ** 2)
    return float(np.concatenate(losses).mean())


def main() -> None:
    stream = story.stream()
    known = stream[stream["label_time"] <= story.START]
    live = stream[stream["invoice_time"] >= story.START]
    frozen = answers(known, live)
    parts = []
    for _, month in live.groupby(live["invoice_time"].dt.strftime("%Y-%m")):
        start = month["invoice_time"].iloc[0].normalize().replace(day=1)
        parts.append(answers(stream[stream["label_time"] <= start], month))
    april = (live["invoice_time"].dt.strftime("%Y-%m") == "2010-04").to_numpy()
    half = TimeSeriesSplit(5, test_size=len(known) // 10)
    shuffled = StratifiedKFold(5, shuffle=True, random_state=0)
    print(f"version 1 frozen, whole replay       {brier(frozen, live):.3f}")
    print(f"refitted every month on all history  {brier(np.concatenate(parts), live):.3f}")
    print(f"version 1, realised in April 2010    {brier(frozen[april], live[april]):.3f}")
    print("expected of version 1:")
    print(f"  its own training rows              {brier(answers(known, known), known):.3f}")
    random = expected(known, shuffled.split(known, known[story.TARGET]))
    print(f"  five random folds                  {random:.3f}")
    whole = expected(known, TimeSeriesSplit(5).split(known))
    print(f"  forward in time, whole             {whole:.3f}")
    print(f"  forward in time, newer half        {expected(known, half.split(known)):.3f}")


if __name__ == "__main__":
    main()
