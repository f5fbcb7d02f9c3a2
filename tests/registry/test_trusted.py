"""The allow-list against what scikit-learn's estimators are really made of."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import operator
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn import calibration, ensemble, feature_selection, impute, linear_model, neighbors
from sklearn import preprocessing as pre
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators
from threadpoolctl import threadpool_limits

from core.errors import UntrustedArtifact
from registry import bounds, trusted
from registry.loading import load_estimator, save_estimator

ROWS = 60


def _data(kind: str) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(np.abs(rng.normal(size=(ROWS, 3))) + 0.1, columns=list("abc"))
    score = frame["a"] + rng.normal(scale=0.3, size=ROWS)
    if kind == "regressor":
        return frame, score.to_numpy() + 2
    return frame, np.where(score > score.median(), "yes", "no")


def _estimators(kind: str) -> Iterator[Any]:
    for _, made in all_estimators(kind):
        needed = [
            name
            for name, parameter in inspect.signature(made).parameters.items()
            if parameter.default is inspect.Parameter.empty
        ]
        tree = DecisionTreeClassifier(max_depth=3)
        inner = linear_model.Ridge() if kind == "regressor" else tree
        values = {
            "estimator": inner,
            "estimators": [("one", inner)],
            "param_grid": {},
            "param_distributions": {},
        }
        if set(needed) <= set(values):
            yield made(**{name: values[name] for name in needed})


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_every_public_estimator_is_kept(kind: str, tmp_path: Path) -> None:
    frame, target = _data(kind)
    kept, refused = 0, {}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # scikit-learn's, about 60 rows, defaults, deprecations
        for estimator in _estimators(kind):
            try:
                estimator.fit(frame, target)
            except (ValueError, TypeError, IndexError):
                continue  # wants other data: several targets, counts, one feature
            try:
                loaded = load_estimator(save_estimator(estimator, tmp_path / "model.skops"))
            except UntrustedArtifact as error:
                refused[type(estimator).__name__] = str(error)
                continue
            answers = loaded.predict(frame), estimator.predict(frame)
            if kind == "classifier":
                np.testing.assert_array_equal(*answers)
            else:
                np.testing.assert_allclose(*answers, rtol=1e-9)
            kept += 1
    assert refused == {}
    assert kept > 30


def _mixed() -> tuple[pd.DataFrame, np.ndarray]:
    frame, target = _data("classifier")
    frame["kind"] = ["x", "y", "z"] * 20
    frame["gap"] = np.where(np.arange(ROWS) % 4 == 0, np.nan, 1.0)
    return frame, target


def _columns(encoder: Any, remainder: str = "passthrough") -> Any:
    gap = make_pipeline(impute.SimpleImputer(add_indicator=True), pre.StandardScaler())
    return make_column_transformer((encoder, ["kind"]), (gap, ["gap"]), remainder=remainder)


HGB = functools.partial(ensemble.HistGradientBoostingClassifier, max_iter=3)
PIPELINES: dict[str, Callable[[], Any]] = {
    "one-hot, logistic": lambda: make_pipeline(
        _columns(pre.OneHotEncoder(handle_unknown="ignore")), linear_model.LogisticRegression()
    ),
    "ordinal, boosting": lambda: make_pipeline(
        _columns(pre.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)), HGB()
    ),
    "categories by name": lambda: HGB(categorical_features=["kind"]),
    "target encoder, forest": lambda: make_pipeline(
        _columns(pre.TargetEncoder(cv=2), "drop"), ensemble.RandomForestClassifier(3)
    ),
    "pandas output": lambda: make_pipeline(
        _columns(pre.OrdinalEncoder()).set_output(transform="pandas"), HGB()
    ),
    "calibrated": lambda: make_pipeline(
        _columns(pre.OrdinalEncoder()), calibration.CalibratedClassifierCV(HGB(), cv=2)
    ),
    "isotonic": lambda: make_pipeline(
        _columns(pre.OrdinalEncoder()),
        calibration.CalibratedClassifierCV(HGB(), cv=2, method="isotonic"),
    ),
    "searched": lambda: make_pipeline(
        _columns(pre.OrdinalEncoder()),
        GridSearchCV(HGB(), {"max_depth": [2]}, scoring="neg_brier_score", cv=KFold(2)),
    ),
    "selector, neighbours": lambda: make_pipeline(
        make_column_transformer(
            (pre.StandardScaler(), make_column_selector("^[ab]$", dtype_include=np.number))
        ),
        neighbors.KNeighborsClassifier(3, metric="manhattan"),
    ),
    "select best, network": lambda: make_pipeline(
        _columns(pre.OneHotEncoder(sparse_output=False)),
        feature_selection.SelectKBest(feature_selection.f_classif, k=3),
        MLPClassifier(hidden_layer_sizes=(4,), solver="sgd", max_iter=300, tol=1e-1),
    ),
    "splines and logs": lambda: make_pipeline(
        make_column_transformer(
            (pre.SplineTransformer(), ["a"]), (pre.FunctionTransformer(np.log1p), ["b"])
        ),
        linear_model.LogisticRegression(),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_ordinary_pipelines_are_kept(name: str, tmp_path: Path) -> None:
    frame, target = _mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence, on 60 rows
        estimator = PIPELINES[name]().fit(frame, target)
    loaded = load_estimator(save_estimator(estimator, tmp_path / "model.skops"))
    np.testing.assert_array_equal(loaded.predict_proba(frame), estimator.predict_proba(frame))


def test_the_list_names_only_scientific_types_and_pure_functions() -> None:
    gone = []
    for name in sorted(trusted.TRUSTED - trusted.BOOSTERS):
        module, _, attribute = name.rpartition(".")
        assert module.partition(".")[0] in ("numpy", "scipy", "sklearn")
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            gone.append(attribute)
        elif name in trusted.CLASSES:
            assert inspect.isclass(found), name
        else:
            assert not inspect.isclass(found), name
    # Scikit-learn 1.6 had the first; the others came later than the oldest we support.
    assert set(gone) <= {"_RemainderColsList", "_TemperatureScaling", "d2_brier_score"}


class Own:
    """A class of the user's."""

    def __init__(self) -> None:
        self.weight = 1.0

    def method(self, values: Any) -> Any:
        return values


def helper(values: Any) -> Any:
    return values


class Touch:
    """Reduces to a call of the class, as a forged file would want it."""

    def __init__(self, path: str) -> None:
        self.path = path
        Path(path).touch()

    def __reduce__(self) -> tuple[Any, ...]:
        return Touch, (self.path,)


def _bombs(canary: str) -> dict[str, Any]:
    import os

    touch = f"touch {canary}"
    wrap = pre.FunctionTransformer
    return {
        "function": wrap(helper),
        "built-in": wrap(os.system),
        "partial": wrap(functools.partial(os.system, touch)),
        "partial of numpy": wrap(functools.partial(np.save, canary)),
        "method": wrap(Own().method),
        "methodcaller": wrap(operator.methodcaller("to_csv", canary)),
        "own class": wrap(kw_args={"x": Own()}),
        "type": wrap(Own),
    }


@pytest.mark.parametrize("name", _bombs(""))
def test_what_could_run_code_is_refused_on_saving_and_loading(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = _bombs(str(canary))[name]
    with pytest.raises(UntrustedArtifact, match="trust_pickle"):
        save_estimator(bomb, tmp_path / "model.skops")
    assert not list(tmp_path.iterdir())

    path = tmp_path / "model.skops"
    skops.io.dump(bomb, path)
    with pytest.raises(UntrustedArtifact, match="trust_pickle"):
        load_estimator(path)
    assert not canary.exists()


def test_a_forged_constructor_does_not_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.skops"
    skops.io.dump({"x": Touch(str(canary))}, path)
    canary.unlink()
    with pytest.raises(UntrustedArtifact, match="Touch"):
        load_estimator(path)
    assert not canary.exists()
    skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    assert canary.exists()  # it would have


def test_the_files_own_allow_list_is_not_believed(tmp_path: Path) -> None:
    skops.io.dump(pre.FunctionTransformer(helper), tmp_path / "model.skops")
    name = f"{helper.__module__}.helper"
    described = {
        "flavors": {"sklearn": {"pickled_model": "model.skops", "skops_trusted_types": [name]}}
    }
    (tmp_path / "MLmodel").write_text(json.dumps(described))
    with pytest.raises(UntrustedArtifact, match="helper"):
        load_estimator(tmp_path)


def _archive(path: Path, schema: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("schema.json", schema)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        b"[" * 100_000,
        b"{}",
        b"[1]",
        b'{"__loader__": "ObjectNode", "protocol": 99}',
        b'{"__loader__": "NoSuchNode", "__class__": "a", "__module__": "b", "protocol": 2}',
        b'{"__loader__": "PartialNode", "__class__": "partial", "__module__": "functools", '
        b'"content": {"func": {"__loader__": "TypeNode"}}, "protocol": 2}',
    ],
)
def test_files_that_are_no_models_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    if content[:1] in b"[{" and content:
        _archive(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(UntrustedArtifact):
        load_estimator(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = _archive(tmp_path / "model.skops", b" " * (70 << 20), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UntrustedArtifact, match="expand to"):
        load_estimator(path)


def test_a_flipped_byte_never_loads_as_another_model(tmp_path: Path) -> None:
    frame, target = _data("classifier")
    estimator = DecisionTreeClassifier(max_depth=3).fit(frame, target)
    path = save_estimator(estimator, tmp_path / "model.skops")
    sound, expected = path.read_bytes(), estimator.predict_proba(frame)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(sound), size=150):
        broken = bytearray(sound)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            loaded = load_estimator(path)
        except UntrustedArtifact:
            continue
        np.testing.assert_array_equal(loaded.predict_proba(frame), expected)


def _stray_tree() -> Any:
    estimator = DecisionTreeClassifier(max_depth=3).fit(*_data("classifier"))
    state = estimator.tree_.__getstate__()
    nodes = state["nodes"].copy()
    nodes["left_child"][0] = 10**9
    estimator.tree_.__setstate__({**state, "nodes": nodes})
    return estimator


def _cyclic_tree() -> Any:
    forest = ensemble.RandomForestClassifier(2, max_depth=3).fit(*_data("classifier"))
    state = forest.estimators_[1].tree_.__getstate__()
    nodes = state["nodes"].copy()
    nodes["right_child"][0] = 0
    forest.estimators_[1].tree_.__setstate__({**state, "nodes": nodes})
    return forest


def _stray_feature() -> Any:
    estimator = HGB().fit(*_data("classifier"))
    estimator._predictors[2][0].nodes["feature_idx"][0] = 70
    return estimator


def _stray_child() -> Any:
    estimator = HGB().fit(*_data("classifier"))
    estimator._predictors[0][0].nodes["left"][0] = 10**6
    return make_pipeline(pre.StandardScaler(), estimator)


@pytest.mark.parametrize("forge", [_stray_tree, _cyclic_tree, _stray_feature, _stray_child])
def test_trees_that_point_outside_themselves_are_refused(
    forge: Callable[[], Any], tmp_path: Path
) -> None:
    path = save_estimator(forge(), tmp_path / "model.skops")
    with pytest.raises(UntrustedArtifact, match="points outside"):
        load_estimator(path)


def test_neighbours_that_point_outside_themselves_are_refused() -> None:
    estimator = neighbors.KNeighborsClassifier(algorithm="kd_tree").fit(*_data("classifier"))
    bounds.check(estimator)
    order = np.asarray(estimator._tree.idx_array)
    order[0] = 10**9
    with pytest.raises(UntrustedArtifact, match="row"):
        bounds.check(estimator)
