"""Segments where rows lose more than their like did: P(y | x) changed there.

A small tree is grown on one half of the window, on loss less what a model of the baseline's loss
expects of such a row, and its leaves are measured on the other half: a tree on raw loss always
finds rows that were hard all along. Splits that only came along are pruned by measuring again
without each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.measure.cells import Column
from monitor.measure.repairs import Repair

_WIDEST = 0.7  # a larger share of the rows is no segment
_LEAVES = 6
_ROWS = 6000  # at most, to fit the model of the baseline's loss
Rule = dict[str, tuple[int, int]]  # column -> cells low < c <= high


def excess(columns: Sequence[Column], outputs: Sequence[Column], base: np.ndarray) -> np.ndarray:
    """What the baseline would have lost on each row of the window, shape (n,).

    Args:
        base: the reference rows' losses, shape (m,); its largest 0.5 % are cut off.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    everything = [*columns, *outputs]
    x = np.column_stack([c.base_cells for c in everything])
    now = np.column_stack([c.now_cells for c in everything])
    y = np.minimum(base, np.quantile(base, 0.995))
    step = max(1, -(-len(x) // _ROWS))
    model = HistGradientBoostingRegressor(
        max_iter=30,
        learning_rate=0.2,
        max_leaf_nodes=8,
        min_samples_leaf=max(20, min(50, len(x) // 20)),
        max_bins=40,
        early_stopping=False,
        random_state=0,
    ).fit(x[::step], y[::step])
    found: np.ndarray = model.predict(now)
    return found


def worst(
    columns: Sequence[Column],
    beyond: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    minimum: int,
) -> Repair | None:
    """The segment that carries most loss beyond what was expected; None if there is none.

    Args:
        beyond: each window row's loss less the expected one, shape (n,).
        minimum: rows a leaf needs.
    """
    from sklearn.tree import DecisionTreeRegressor

    n = len(beyond)
    if n < 4 * minimum or not columns:
        return None
    cells = np.column_stack([column.now_cells for column in columns]).astype(np.float32)
    order = rng.permutation(n)
    grown, measured = order[: n // 2], order[n // 2 :]
    tree = DecisionTreeRegressor(
        max_leaf_nodes=_LEAVES, min_samples_leaf=minimum, random_state=0
    ).fit(cells[grown], beyond[grown], sample_weight=weights[grown])
    best: tuple[float, Rule] | None = None
    part, u, w = cells[measured], beyond[measured], weights[measured]
    for rule in _rules(tree, columns):
        gain = _measure(_inside(rule, columns, part), u, w)[0]
        if gain > 0 and (best is None or gain > best[0]):
            best = gain, rule
    if best is None:
        return None
    rule = _pruned(best[1], columns, part, u, w)
    inside = _inside(rule, columns, part)
    gain, se, mean = _measure(inside, u, w)
    if gain <= 0:
        return None
    names = tuple(sorted({name for name, _ in _sides(rule)}))
    mask = _inside(rule, columns, cells)
    return Repair(
        kind="segment",
        columns=names,
        gain=gain,
        se=se,
        n=len(u),
        mask=mask,
        excess=mean,
        rule=rule,
    )


def _rules(tree: object, columns: Sequence[Column]) -> list[Rule]:
    """The path to every leaf, and to every inner node below the root, as a rule."""
    t = tree.tree_  # type: ignore[attr-defined]
    found: list[Rule] = []
    waiting: list[tuple[int, Rule]] = [(0, {})]
    while waiting:
        node, rule = waiting.pop()
        if rule:
            found.append(rule)
        if t.feature[node] < 0:
            continue
        column = columns[int(t.feature[node])]
        at = int(np.floor(t.threshold[node]))
        low, high = rule.get(column.name, (-1, column.size - 1))
        waiting.append((int(t.children_left[node]), rule | {column.name: (low, min(high, at))}))
        waiting.append((int(t.children_right[node]), rule | {column.name: (max(low, at), high)}))
    return found


def _inside(rule: Rule, columns: Sequence[Column], cells: np.ndarray) -> np.ndarray:
    inside = np.ones(len(cells), dtype=bool)
    for index, column in enumerate(columns):
        if column.name in rule:
            low, high = rule[column.name]
            inside &= (cells[:, index] > low) & (cells[:, index] <= high)
    return inside


def _measure(inside: np.ndarray, u: np.ndarray, w: np.ndarray) -> tuple[float, float, float]:
    """Loss a segment carries per row of the window, its standard error, and its excess."""
    share = float(w[inside].sum() / w.sum())
    if not inside.any() or share > _WIDEST:
        return -np.inf, 0.0, 0.0
    here = float(np.average(u[inside], weights=w[inside]))
    there = float(np.average(u[~inside], weights=w[~inside])) if not inside.all() else 0.0
    mean = here - max(0.0, there)
    spread = float(np.average((u[inside] - here) ** 2, weights=w[inside])) / inside.sum()
    if there > 0:
        spread += float(np.average((u[~inside] - there) ** 2, weights=w[~inside])) / (
            len(u) - inside.sum()
        )
    return mean * share, share * float(np.sqrt(spread)), mean


def _apart(inside: np.ndarray, u: np.ndarray, w: np.ndarray) -> float:
    """Variance between inside and outside: what a split is for."""
    share = float(w[inside].sum() / w.sum())
    if share <= 0 or share > _WIDEST:
        return -np.inf
    difference = np.average(u[inside], weights=w[inside]) - np.average(
        u[~inside], weights=w[~inside]
    )
    return float(share * (1 - share) * difference**2) if difference > 0 else -np.inf


def _sides(rule: Rule) -> list[tuple[str, int]]:
    """Each bound of a rule: (column, 0 for the lower one, 1 for the upper one)."""
    return [(name, side) for name in rule for side in (0, 1)]


def _pruned(
    rule: Rule, columns: Sequence[Column], cells: np.ndarray, u: np.ndarray, w: np.ndarray
) -> Rule:
    """The rule without the bounds it sets apart as much loss without."""
    sizes = {column.name: column.size for column in columns}
    while True:
        now = _apart(_inside(rule, columns, cells), u, w)
        tried = []
        for name, side in _sides(rule):
            low, high = rule[name]
            open_end = low < 0 if side == 0 else high >= sizes[name] - 1
            if open_end:
                continue
            wider = (-1, high) if side == 0 else (low, sizes[name] - 1)
            other = rule | {name: wider}
            if wider == (-1, sizes[name] - 1):
                other = {key: value for key, value in rule.items() if key != name}
            if other:
                tried.append((_apart(_inside(other, columns, cells), u, w), other))
        if not tried:
            return rule
        score, other = max(tried, key=lambda each: each[0])
        if score < 0.95 * now:
            return rule
        rule = other


def told(rule: Rule, columns: Sequence[Column]) -> str:
    """The rule in words: `age > 40.5 and region in {north, west}`."""
    parts = []
    for column in columns:
        if column.name in rule:
            parts.append(_condition(column, *rule[column.name]))
    return " and ".join(parts)


def _condition(column: Column, low: int, high: int) -> str:
    if not column.numeric:
        names = [*column.levels, "missing"][low + 1 : high + 1]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{column.name} in {{{shown}}}"
    with_missing = high >= column.missing and bool((column.now_cells == column.missing).any())
    if low >= column.missing - 1:
        return f"{column.name} missing"
    top = len(column.edges) - 1
    above = f"{column.name} > {column.edges[low]:.4g}" if low >= 0 else ""
    below = f"{column.name} ≤ {column.edges[min(high, top)]:.4g}" if high <= top else ""
    if above and below:
        words = f"{column.edges[low]:.4g} < {column.name} ≤ {column.edges[min(high, top)]:.4g}"
    else:
        words = above or below or f"{column.name} present"
    return words + (" or missing" if with_missing and low >= 0 else "")
