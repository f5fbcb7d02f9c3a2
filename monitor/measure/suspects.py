"""Every suspect of a window tried by its repair, and the one that carries most of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from core.spec import Metric, ModelSpec
from monitor.measure import cause_words, cells, repairs, segments
from monitor.measure.cells import Column
from monitor.measure.performance import row_loss
from monitor.measure.repairs import Repair

if TYPE_CHECKING:
    import pandas as pd

    Predict = Callable[[pd.DataFrame], pd.DataFrame]

FLOOR = 0.02  # of the baseline's loss, below which nothing is accused
PART = 0.15  # of the rise, likewise
_Z = 3.5  # standard errors a gain must be from nothing
_TRIED = 2000  # rows predicted again per column
_COLUMNS = 40  # columns predicted again, farthest moved first
_PSI = 0.01  # beyond chance, before a column counts as moved
_ALIKE = 1.64  # paired difference, in standard errors, under which two columns are one group
_RIVALS = 6  # shifted columns compared by what they do to the others
_PREFERRED = {"broken": 1.15, "prior": 1.1, "shift": 1.1, "segment": 1.0}


@dataclass(frozen=True)
class Sample:
    """Rows with their inputs, outputs, encoded labels and losses, row by row alike.

    Attributes:
        inputs: one column per feature, dtypes as the model takes them.
        outputs: one column per `spec.outputs`.
        y: encoded labels, NaN where there is none.
        loss: `row_loss`, NaN where it is unknown.
    """

    inputs: pd.DataFrame
    outputs: pd.DataFrame
    y: np.ndarray
    loss: np.ndarray


def sample(
    spec: ModelSpec,
    inputs: pd.DataFrame,
    outputs: pd.DataFrame,
    y: np.ndarray,
    metric: Metric | None = None,
) -> Sample:
    """Rows with the losses of a metric (the spec's own when None)."""
    return Sample(inputs, outputs, y, row_loss(spec, outputs, y, metric))


class Case:
    """The window as it stands: what was found so far is undone in it."""

    def __init__(
        self,
        spec: ModelSpec,
        reference: Sample,
        window: Sample,
        predict: Predict | None,
        metric: Metric | None,
        rng: np.random.Generator,
    ) -> None:
        self.spec, self.metric, self.rng = spec, metric, rng
        self.reference, self.inputs, self.y = reference, window.inputs, window.y
        self.base, self.loss = reference.loss, window.loss
        self.level = float(reference.loss.mean())
        self.weights = np.ones(len(window.loss))
        self.predict = predict
        self.notes: list[str] = []
        self.blamed: set[str] = set()
        if predict is None:
            self.notes.append("no model to ask: columns were not mapped back and predicted again")
        kinds = {feature.name: feature.kind for feature in spec.features}
        self.columns = {
            name: cells.code(name, kind, reference.inputs[name], window.inputs[name], self.base)
            for name, kind in kinds.items()
            if name in reference.inputs.columns and name in window.inputs.columns
        }
        self.outputs = [
            cells.code(name, "numeric", reference.outputs[name], window.outputs[name], self.base)
            for name in spec.outputs
        ]
        self.scale = spec.task == "regression"
        self.target = cells.numbers(spec.target, reference.y, window.y)
        count = min(_TRIED, len(self.loss))
        self.picked = np.sort(rng.choice(len(self.loss), count, replace=False))
        self.again: np.ndarray | None = None  # losses of those rows, predicted again as they are
        self.expected: np.ndarray | None = None

    def rise(self) -> tuple[float, float]:
        w = self.weights / self.weights.mean()
        mean = float((w * self.loss).mean())
        here = float(((w * (self.loss - mean)) ** 2).mean() / len(w))
        there = float(self.base.var() / len(self.base))
        return mean - float(self.base.mean()), float(np.sqrt(here + there))

    def accused(self, whole: float) -> Repair | None:
        """The largest suspect that passes; with it those that cannot be told from it."""
        left, _ = self.rise()
        suspects = [s for s in self._suspects(left) if not set(s.columns) <= self.blamed]
        least = max(FLOOR * self.level, PART * whole)
        passed = [s for s in suspects if s.gain > max(_Z * s.se, least)]
        if not passed:
            return None
        best = max(passed, key=lambda s: _credit(s, left))
        return self._grouped(self._leading(best, passed), passed)

    def _leading(self, best: Repair, passed: Sequence[Repair]) -> Repair:
        """Of the columns that may have shifted, the one whose weights bring the others back best.

        A column that was moved by itself and goes with the one that led picks easy rows as well;
        what the two do to all other columns tells them apart.
        """
        rivals = [s for s in passed if s.kind == "shift" and s.gain > 0.5 * best.gain]
        rivals.sort(key=lambda s: s.gain, reverse=True)
        for rival in rivals[:_RIVALS] if best.kind == "shift" else ():
            two = {best.columns[0], rival.columns[0]}
            others = [c for c in self.columns.values() if c.name not in two]
            if len(two) < 2 or best.weights is None or rival.weights is None:
                continue
            mine = self._astray(others, best.weights)
            if self._astray(others, rival.weights) < 0.7 * mine - _PSI:
                best = rival
        return best

    def _suspects(self, left: float) -> list[Repair]:
        found: list[Repair] = []
        rows = float(self.weights.sum() ** 2 / (self.weights**2).sum())
        moved = []
        for name, column in self.columns.items():
            far = cells.psi(column.base_shares(), column.now_shares(self.weights))
            if far > _PSI + cells.noise(column.size, len(column.base), rows):
                moved.append((far, name))
        moved.sort(reverse=True)
        for _, name in moved:
            shifted = repairs.shift(self.columns[name], self.loss, self.weights)
            if shifted is not None and shifted.gain > _Z * shifted.se and self._belongs(shifted):
                found.append(shifted)
        if len(moved) > _COLUMNS and self.predict is not None:
            note = f"{len(moved)} columns moved; the {_COLUMNS} farthest were predicted again"
            self.notes += [note] if note not in self.notes else []
        for _, name in moved[:_COLUMNS]:
            found += self._broken(self.columns[name], left)
        label = repairs.prior(self.target, self.outputs, self.loss, self.weights)
        if label is not None:
            found.append(label)
        segment = self._segment()
        return [*found, segment] if segment is not None else found

    def _belongs(self, shifted: Repair) -> bool:
        """Whether the rest of the rows came along with the column, as people do and units do not.

        Where a population moved, the weights that bring one column back bring those that go with it
        back too. Where a column alone was moved, they drive its companions away, and rows are
        picked that were easy for another reason.
        """
        if shifted.weights is None:
            return False
        own = shifted.columns[0]
        others = [c for c in (*self.columns.values(), *self.outputs) if c.name != own]
        before, after = self._astray(others, self.weights), self._astray(others, shifted.weights)
        return after <= 1.1 * before + _PSI

    def _astray(self, columns: Sequence[Column], weights: np.ndarray) -> float:
        """How far columns are from their baseline beyond chance, by summed PSI."""
        rows = float(weights.sum() ** 2 / (weights**2).sum())
        total = 0.0
        for column in columns:
            far = cells.psi(column.base_shares(), column.now_shares(weights))
            total += max(0.0, far - cells.noise(column.size, len(column.base), rows))
        return total

    def _segment(self) -> Repair | None:
        columns = list(self.columns.values())
        if not columns:
            return None
        if self.expected is None:
            self.expected = segments.excess(columns, self.outputs, self.reference.loss)
        cut = 5 * float(np.quantile(self.base, 0.999))
        beyond = np.minimum(self.loss, cut) - self.expected
        rows = max(50, len(self.loss) // 50)
        return segments.worst(columns, beyond, self.weights, self.rng, rows)

    def _broken(self, column: Column, left: float) -> list[Repair]:
        if self.predict is None:
            return []
        name, picked = column.name, self.picked
        if self.again is None:
            self.again = self._ask(self.inputs.iloc[picked], self.y[picked])
        if self.again is None:
            return []
        found = []
        base = self.reference.inputs[name]
        repaired = repairs.mapped_back(column, self.inputs[name], base, self.rng)
        rows = self.inputs.iloc[picked].assign(**{name: repaired.iloc[picked].to_numpy()})
        loss = self._ask(rows, self.y[picked])
        if loss is not None:
            w = self.weights[picked] / self.weights[picked].mean()
            gains = w * (self.again - loss)
            gain, se = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
            found.append(
                Repair("broken", (name,), gain, se, len(gains), column=repaired,
                       influence=gains - gain)
            )  # fmt: skip
        if repairs.dead(column):
            alike = self._broken_alike(column, left)
            found += [alike] if alike is not None else []
        return found

    def _broken_alike(self, column: Column, left: float) -> Repair | None:
        """The reference with the window's values in this column: what a dead feed costs there."""
        name, m = column.name, len(self.base)
        rows = np.sort(self.rng.choice(m, min(_TRIED, m), replace=False))
        inputs, y = self.reference.inputs.iloc[rows], self.reference.y[rows]
        draws = self.inputs[name].iloc[self.rng.integers(0, len(self.inputs), len(rows))]
        sound = self._ask(inputs, y)
        spoilt = self._ask(inputs.assign(**{name: draws.to_numpy()}), y)
        if sound is None or spoilt is None:
            return None
        cost = spoilt - sound
        gain, se = float(cost.mean()), float(cost.std() / np.sqrt(len(cost)))
        dearer = self.base + gain
        return Repair("broken", (name,), min(gain, left), se, len(rows), reference=dearer)

    def _ask(self, inputs: pd.DataFrame, y: np.ndarray) -> np.ndarray | None:
        """Losses of rows predicted again; None from the first failure on, which is noted."""
        if self.predict is None:
            return None
        try:
            outputs = self.predict(inputs.reset_index(drop=True))
            loss = row_loss(self.spec, outputs, y, self.metric)
        except Exception as error:  # a user's model may raise anything; the rest can still be told
            self.predict = None
            self.notes.append(f"the model did not answer rows predicted again: {error}"[:300])
            return None
        return np.where(np.isfinite(loss), loss, self.level)

    def _grouped(self, best: Repair, passed: list[Repair]) -> Repair:
        text = cause_words.told(best, self.columns, self.target, self.loss, scale=self.scale)
        names, own_names = list(best.columns), len(best.columns)
        if best.kind in ("shift", "broken") and best.influence is not None:
            own = self.columns[best.columns[0]]
            for other in passed:
                alike = other.kind == best.kind and other.influence is not None
                if not alike or other is best or other.columns[0] in names:
                    continue
                if _same(best, other) and (
                    repairs.rank_correlation(own, self.columns[other.columns[0]]) > 0.3
                ):
                    names.append(other.columns[0])
        if len(names) > own_names:
            text += f"; {', '.join(names[own_names:4])} cannot be told from it"
        return replace(best, columns=tuple(names[:4]), text=text)

    def undo(self, cause: Repair) -> tuple[float, float]:
        """Carry on with the cause undone; what is left of the rise, and its standard error."""
        self.blamed |= set(cause.columns)
        if cause.weights is not None:
            self.weights = cause.weights
        elif cause.mask is not None:
            self.loss = self.loss - cause.excess * cause.mask
        elif cause.reference is not None:
            self.base = cause.reference
        elif cause.column is not None:
            name = cause.columns[0]
            self.inputs = self.inputs.assign(**{name: cause.column})
            loss = self._ask(self.inputs, self.y)
            self.loss = self.loss - cause.gain if loss is None else loss
            kind = next(f.kind for f in self.spec.features if f.name == name)
            base = self.reference.inputs[name]
            self.columns[name] = cells.code(
                name, kind, base, self.inputs[name], self.reference.loss
            )
            self.again = self.expected = None
        return self.rise()


def _credit(suspect: Repair, left: float) -> float:
    """What suspects are ranked by: the loss removed, less what goes beyond all there is to remove.

    Undoing the cause brings the loss back to its baseline and not below it: weights that do so
    have picked easy rows.
    """
    beyond = max(0.0, suspect.gain - left - 2 * suspect.se)
    return (suspect.gain - 2 * beyond) * _PREFERRED[suspect.kind]


def _same(one: Repair, other: Repair) -> bool:
    """Whether two repairs remove the same loss, as far as the rows can tell."""
    if one.influence is None or other.influence is None:
        return False
    if len(one.influence) != len(other.influence):
        return False
    apart = (one.influence - other.influence).std() / np.sqrt(len(one.influence))
    return bool(abs(one.gain - other.gain) < _ALIKE * max(apart, 1e-300))
