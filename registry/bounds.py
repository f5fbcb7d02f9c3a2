"""Indices inside fitted trees, checked before a model answers.

scikit-learn follows node indices without looking: a crafted file can pass every type check and
still crash the process, or read what is none of its business, at the first prediction
(scikit-learn #34558; skops's `UNTRUSTED_TYPE_REASONS`). A fitted tree always points from a node to
later nodes, so `parent < child < n` excludes both strays and cycles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from core.errors import UntrustedArtifact


def check(estimator: object) -> None:
    """Walk everything a loaded estimator holds and check the trees in it.

    Raises:
        UntrustedArtifact: a node, feature or row index points outside its array.
    """
    for held, features in _walk(estimator):
        kind = type(held)
        if kind.__module__ == "sklearn.tree._tree" and kind.__name__ == "Tree":
            _tree(held, features)
        elif kind.__name__ == "TreePredictor" and kind.__module__.startswith("sklearn."):
            _predictor(held, features)
        elif kind.__module__ in ("sklearn.neighbors._kd_tree", "sklearn.neighbors._ball_tree"):
            _neighbours(held)


def _walk(root: object) -> Iterator[tuple[Any, int | None]]:
    """Every object reachable from the root, with the input count of the estimator around it."""
    seen: set[int] = set()
    stack: list[tuple[Any, int | None]] = [(root, None)]
    while stack:
        item, features = stack.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float | type | None):
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            stack.extend((value, features) for value in item.values())
        elif isinstance(item, list | tuple | set):
            stack.extend((value, features) for value in item)
        elif isinstance(item, np.ndarray):
            if item.dtype == object:
                stack.extend((value, features) for value in item.ravel())
        else:
            yield item, features
            inner = getattr(item, "__dict__", {})
            count = inner.get("n_features_in_", features)
            stack.extend((value, count) for value in inner.values())


def _require(sound: bool | np.bool_, what: str) -> None:
    if not sound:
        raise UntrustedArtifact(
            f"the model file holds a tree whose {what} points outside it: the file was damaged or "
            "made to crash its reader; register the model anew from its source"
        )


def _inside(values: np.ndarray, stop: int | None) -> bool:
    if not values.size:
        return True
    return bool(values.min() >= 0 and (stop is None or values.max() < stop))


def _forward(children: np.ndarray, parents: np.ndarray, count: int) -> bool:
    return bool(np.all((children > parents) & (children < count)))


def _tree(tree: Any, features: int | None) -> None:
    left, right = tree.children_left, tree.children_right
    _require(((left == -1) == (right == -1)).all(), "child")
    parents = np.flatnonzero(left != -1)
    for children in (left[parents], right[parents]):
        _require(_forward(children, parents, tree.node_count), "child")
    _require(features is None or tree.n_features == features, "feature")
    _require(_inside(tree.feature[parents], tree.n_features), "feature")


def _predictor(predictor: Any, features: int | None) -> None:
    nodes = predictor.nodes
    parents = np.flatnonzero(nodes["is_leaf"] == 0)
    _require(len(nodes) > 0, "root")
    for side in ("left", "right"):
        _require(_forward(nodes[side][parents].astype(np.int64), parents, len(nodes)), "child")
    _require(_inside(nodes["feature_idx"][parents], features), "feature")
    sets = nodes["bitset_idx"][parents][nodes["is_categorical"][parents] != 0].astype(np.int64)
    for bitsets in (predictor.raw_left_cat_bitsets, predictor.binned_left_cat_bitsets):
        _require(not sets.size or (bitsets.ndim == 2 and bitsets.shape[1] == 8), "category set")
        _require(_inside(sets, len(bitsets)), "category set")


def _neighbours(tree: Any) -> None:
    data, order, nodes, _ = (np.asarray(part) for part in tree.get_arrays())
    rows = len(data)
    _require(len(order) == rows and _inside(order, rows), "row")
    for end in ("idx_start", "idx_end"):
        _require(_inside(nodes[end], rows + 1), "row")
