"""Tree ensembles as flat arrays: what the `onnx` and `torch` backends make of scikit-learn's,
XGBoost's and LightGBM's trees.

Treelite reads the fitted trees of every library into one form; here they become six arrays in the
precision in which the library compares. A file of them (`.npz`) holds numbers and nothing else, so
that opening it runs nobody's code and needs neither treelite nor scikit-learn.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from core.errors import UntrustedArtifact
from serving.backend import NotApplicable

_FORMAT = 1
_LESS, _LESS_EQUAL = 2, 3  # treelite's `Operator::kLT`, `kLE`


class Forest(Struct, frozen=True, kw_only=True, eq=False):
    """Trees of one ensemble, node after node; children have larger indices than their parent.

    A leaf points to itself, so that a walk of `depth` steps ends in a leaf wherever it began.
    """

    feature: np.ndarray  # int32 (nodes,); 0 in leaves
    threshold: np.ndarray  # float64 or float32 (nodes,); what the library compares with
    children: np.ndarray  # int32 (nodes, 2): where a row goes that is not below, that is below
    missing_below: np.ndarray  # bool (nodes,): a missing value counts as below the threshold
    value: np.ndarray  # float64 (nodes, width); 0 in inner nodes
    roots: np.ndarray  # int32 (trees,)
    target: np.ndarray  # int32 (trees,): the output a tree adds to; -1: all of them
    depth: int
    below: str  # `<` or `<=`
    base: np.ndarray  # float64 (outputs,), added to the sums
    average: bool  # the sum is divided by the number of trees
    link: str  # identity, sigmoid, softmax, exponential
    inputs: int  # features

    @property
    def outputs(self) -> int:
        """Sums that the trees make."""
        return len(self.base)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (getattr(self, name) for name in _ARRAYS)
        return sum(int(array.nbytes) for array in arrays)


_ARRAYS = ("feature", "threshold", "children", "missing_below", "value", "roots", "target", "base")
_PLAIN = ("depth", "below", "average", "link", "inputs")


def forest_of(estimator: Any) -> Forest:
    """The trees of a fitted estimator.

    Raises:
        NotApplicable: treelite is not installed, or does not know the estimator, or its trees
            split on sets of categories.
    """
    model = _treelite(estimator)
    header = model.get_header_accessor()
    trees = [_tree(model.get_tree_accessor(index)) for index in range(model.num_tree)]
    if not trees:
        raise NotApplicable("the ensemble has no trees")
    counts = [len(tree["feature"]) for tree in trees]
    roots = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    for root, tree in zip(roots, trees, strict=True):
        tree["children"] += root
    operators = set().union(*(tree["operators"] for tree in trees)) or {_LESS_EQUAL}
    if len(operators) > 1 or not operators <= {_LESS, _LESS_EQUAL}:
        raise NotApplicable(f"its trees compare in several ways (treelite operators {operators})")
    base = np.atleast_1d(header.get_field("base_scores")).astype(np.float64)
    whole = {
        name: np.concatenate([tree[name] for tree in trees])
        for name in ("feature", "threshold", "children", "missing_below", "value")
    }
    classes = np.atleast_1d(header.get_field("num_class"))
    if len(classes) > 1:
        raise NotApplicable("it predicts several targets")
    return Forest(
        **whole,
        roots=roots,
        target=_targets(header, len(trees), whole["value"].shape[1], int(classes[0])),
        depth=max(tree["depth"] for tree in trees),
        below="<" if operators == {_LESS} else "<=",
        base=np.resize(base, int(classes[0])),
        average=bool(np.atleast_1d(header.get_field("average_tree_output"))[0]),
        link=_link(header),
        inputs=int(np.atleast_1d(header.get_field("num_feature"))[0]),
    )


def _treelite(estimator: Any) -> Any:
    try:
        import treelite
    except ImportError:
        raise NotApplicable("install shelflife[onnx]: treelite reads the trees") from None
    package = type(estimator).__module__.partition(".")[0]
    try:
        if package == "xgboost":
            return treelite.frontend.from_xgboost(estimator.get_booster())
        if package == "lightgbm":
            return treelite.frontend.from_lightgbm(estimator.booster_)
        return treelite.sklearn.import_model(estimator)
    except Exception as error:  # treelite raises what it likes for what it does not know
        text = str(error).splitlines()[0] if str(error) else repr(error)
        raise NotApplicable(f"treelite: {text[:160]}") from None


def _tree(accessor: Any) -> dict[str, Any]:
    field = accessor.get_field
    left, right = field("cleft").astype(np.int32), field("cright").astype(np.int32)
    leaf, own = left < 0, np.arange(len(left), dtype=np.int32)
    if np.any(field("has_categorical_split")):
        raise NotApplicable("its trees split on sets of categories")
    children = np.column_stack([np.where(leaf, own, right), np.where(leaf, own, left)])
    threshold = np.where(leaf, 0, field("threshold"))
    if leaf[0]:
        return _stump(field, _values(field, leaf))
    return {
        "feature": np.where(leaf, 0, field("split_index")).astype(np.int32),
        "threshold": threshold.astype(field("threshold").dtype),
        "children": children.astype(np.int32),
        "missing_below": field("default_left").astype(bool),
        "value": _values(field, leaf),
        "depth": _depth(left, right),
        "operators": set(np.unique(field("cmp")[~leaf]).tolist()),
    }


def _stump(field: Any, value: np.ndarray) -> dict[str, Any]:
    """A tree that is one leaf, as a node with the same leaf on both sides."""
    return {
        "feature": np.zeros(3, dtype=np.int32),
        "threshold": np.zeros(3, dtype=field("threshold").dtype),
        "children": np.array([[2, 1], [1, 1], [2, 2]], dtype=np.int32),
        "missing_below": np.zeros(3, dtype=bool),
        "value": np.concatenate([np.zeros_like(value), value, value]),
        "depth": 1,
        "operators": set(),
    }


def _depth(left: np.ndarray, right: np.ndarray) -> int:
    level, depth = np.zeros(1, dtype=np.int32), -1
    while len(level):
        depth += 1
        inner = level[left[level] >= 0]
        level = np.concatenate([left[inner], right[inner]])
    return depth


def _values(field: Any, leaf: np.ndarray) -> np.ndarray:
    vector = field("leaf_vector").astype(np.float64)
    if not len(vector):
        return np.where(leaf, field("leaf_value").astype(np.float64), 0.0)[:, None]
    begin = field("leaf_vector_begin").astype(np.int64)
    width = int((field("leaf_vector_end").astype(np.int64) - begin)[leaf][0])
    values = np.zeros((len(leaf), width))
    values[leaf] = vector[begin[leaf][:, None] + np.arange(width)]
    return values


def _targets(header: Any, trees: int, width: int, outputs: int) -> np.ndarray:
    found = np.resize(np.atleast_1d(header.get_field("class_id")).astype(np.int32), trees)
    if width > 1:
        return np.full(trees, -1, dtype=np.int32)
    return found if outputs > 1 else np.zeros(trees, dtype=np.int32)


def _link(header: Any) -> str:
    found = header.get_field("postprocessor")
    name = bytes(found).decode() if isinstance(found, np.ndarray) else str(found)
    known = {
        "identity": "identity",
        "identity_multiclass": "identity",
        "sigmoid": "sigmoid",
        "softmax": "softmax",
        "exponential": "exponential",
    }
    if name not in known:
        raise NotApplicable(f"its sums become answers by {name}, which is not known here")
    return known[name]


def save(forest: Forest, path: Path) -> None:
    """Write a forest; the same forest gives the same bytes."""
    plain = {"format": _FORMAT} | {name: getattr(forest, name) for name in _PLAIN}
    head = np.frombuffer(json.dumps(plain, sort_keys=True).encode(), dtype=np.uint8)
    arrays = {"head": head} | {name: getattr(forest, name) for name in _ARRAYS}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())  # no clock in it


def load(path: Path) -> Forest:
    """Read a forest that `save` wrote.

    Raises:
        UntrustedArtifact: damaged, or nodes point outside the arrays.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            plain = json.loads(bytes(archive["head"]))
            if plain.pop("format") != _FORMAT:
                raise ValueError("written by another version of shelflife")
            forest = Forest(**{name: archive[name] for name in _ARRAYS}, **plain)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UntrustedArtifact(f"{path.name} is not a sound forest: {error}") from None
    nodes = len(forest.feature)
    own = np.arange(nodes)[:, None]
    sound = (
        forest.children.shape == (nodes, 2)
        and len(forest.threshold) == len(forest.value) == len(forest.missing_below) == nodes
        and np.all((forest.children >= own) & (forest.children < nodes))
        and np.all((forest.feature >= 0) & (forest.feature < forest.inputs))
        and np.all((forest.roots >= 0) & (forest.roots < nodes))
        and np.all((forest.target >= -1) & (forest.target < forest.outputs))
    )
    if not sound:
        raise UntrustedArtifact(f"{path.name}: nodes point outside the forest")
    return forest


def walk(forest: Forest, matrix: np.ndarray) -> np.ndarray:
    """The forest's answers by plain NumPy: float64 (rows, outputs after the link).

    The reference that the other interpreters of a forest are held against; not fast.
    """
    rows = matrix.astype(forest.threshold.dtype)
    node = np.broadcast_to(forest.roots, (len(rows), len(forest.roots)))
    index = np.arange(len(rows))[:, None]
    for _ in range(forest.depth):
        x, threshold = rows[index, forest.feature[node]], forest.threshold[node]
        below = x < threshold if forest.below == "<" else x <= threshold
        below = np.where(np.isnan(x), forest.missing_below[node], below)
        node = forest.children[node, below.astype(np.int32)]
    return link(forest, sums(forest, forest.value[node]))


def sums(forest: Forest, leaves: np.ndarray) -> np.ndarray:
    """Sums over trees: (rows, trees, width) to (rows, outputs)."""
    if forest.target[0] < 0:
        total = leaves.sum(axis=1)
    else:
        total = np.zeros((len(leaves), forest.outputs))
        for output in range(forest.outputs):
            total[:, output] = leaves[:, forest.target == output, 0].sum(axis=1)
    if forest.average:
        total = total / len(forest.roots)
    return np.asarray(total + forest.base)


def link(forest: Forest, total: np.ndarray) -> np.ndarray:
    """What sums mean: probabilities, or the number itself."""
    if forest.link == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-total)))
    if forest.link == "exponential":
        return np.asarray(np.exp(total))
    if forest.link == "softmax":
        shifted = np.exp(total - total.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
    return total
