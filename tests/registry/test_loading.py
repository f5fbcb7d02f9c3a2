from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from core.errors import BadOutput, InputError, NotFound, UntrustedArtifact
from core.spec import ModelSpec, Scalar, infer_spec
from registry.loading import (
    PyfuncEstimator,
    describe,
    load_estimator,
    predict,
    predict_array,
    pyfunc,
    save_estimator,
)


def _spec(frame: pd.DataFrame, classes: tuple[Scalar, ...]) -> ModelSpec:
    task: Any = {0: "regression", 2: "binary"}.get(len(classes), "multiclass")
    return infer_spec("m", frame, target="y", task=task, classes=classes)


class _Fixed:
    """An estimator that answers what it is told, as a broken one might."""

    classes_ = np.array([0, 1])

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def predict(self, inputs: Any) -> Any:
        return self.answer

    predict_proba = predict


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("flavour", [None, "pickle", "cloudpickle"])
def test_a_pickle_runs_only_where_an_operator_said_so(flavour: str | None, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb(canary)))
    if flavour:
        (tmp_path / "MLmodel").write_text(
            "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"
            f"    serialization_format: {flavour}\n"
        )
    for place in (tmp_path, tmp_path / "model.pkl"):
        with pytest.raises(UntrustedArtifact, match="trust_pickle"):
            load_estimator(place)
    assert not canary.exists()
    load_estimator(tmp_path, trust_pickle=True)
    assert canary.exists()


def test_a_pickle_that_calls_itself_skops_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "model.skops").write_bytes(pickle.dumps(Bomb(canary)))
    for trust in (False, True):
        with pytest.raises(UntrustedArtifact):
            load_estimator(tmp_path, trust_pickle=trust)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../outside.skops", "/etc/passwd", "link.skops", "none", "."])
def test_the_description_cannot_lead_outside_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_estimator(StandardScaler(), tmp_path / "outside.skops")
    (folder / "link.skops").symlink_to(tmp_path / "outside.skops")
    (folder / "MLmodel").write_text(f"flavors: {{sklearn: {{pickled_model: {name}}}}}")
    with pytest.raises(UntrustedArtifact, match="own folder"):
        load_estimator(folder)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="MLmodel"):
        load_estimator(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: [")
    with pytest.raises(UntrustedArtifact, match="MLmodel"):
        load_estimator(tmp_path)


def test_a_trusted_own_class_goes_to_a_pickle_and_back(tmp_path: Path) -> None:
    with pytest.raises(UntrustedArtifact, match="Bomb"):
        save_estimator(_Fixed(Bomb(tmp_path / "canary")), tmp_path / "model.skops")
    path = save_estimator(_Fixed(3), tmp_path / "model.skops", trust_pickle=True)
    assert path == tmp_path / "model.pkl"
    assert load_estimator(tmp_path, trust_pickle=True).answer == 3
    plain = save_estimator(StandardScaler(), tmp_path / "other.skops", trust_pickle=True)
    assert plain.suffix == ".skops"


def test_loading_needs_no_mlflow_and_importing_it_nothing_heavy(tmp_path: Path) -> None:
    save_estimator(StandardScaler(), tmp_path / "model.skops")
    code = (
        "import sys; from pathlib import Path; from registry import loading\n"
        "heavy = {'mlflow', 'sklearn', 'skops', 'pandas', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "loading.load_estimator(Path(sys.argv[1]))\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_binary_probability_is_that_of_the_second_class_of_the_spec(frame: pd.DataFrame) -> None:
    target = np.where(frame["a"] > 0, "no", "yes")
    estimator = LogisticRegression().fit(frame, target)
    raw = estimator.predict_proba(frame)
    answers = predict(estimator, _spec(frame, ("no", "yes")), frame)
    assert list(answers.columns) == ["probability"]
    assert answers["probability"].dtype == np.float64
    np.testing.assert_array_equal(answers["probability"], raw[:, 1])
    turned = predict(estimator, _spec(frame, ("yes", "no")), frame)
    np.testing.assert_array_equal(turned["probability"], raw[:, 0])


def test_columns_are_matched_by_name_and_the_index_stays(
    frame: pd.DataFrame, target: np.ndarray, spec: ModelSpec
) -> None:
    estimator = LogisticRegression().fit(frame, target)
    shuffled = frame[["b", "a", "n"]].assign(extra=1).iloc[50:53]
    answers = predict(estimator, spec, shuffled)
    assert list(answers.index) == [50, 51, 52]
    expected = estimator.predict_proba(frame.iloc[50:53])[:, 1]
    np.testing.assert_array_equal(answers["probability"], expected)
    assert predict(estimator, spec, frame.iloc[:0]).shape == (0, 1)
    with pytest.raises(InputError, match=r"\['a'\]"):
        predict(estimator, spec, frame[["b", "n"]])


def test_multiclass_follows_the_spec_and_unseen_classes_are_zero(frame: pd.DataFrame) -> None:
    target = np.arange(len(frame)) % 3
    estimator = DecisionTreeClassifier(max_depth=3).fit(frame, target)
    answers = predict(estimator, _spec(frame, ("2", 0.0, 1, 7)), frame)
    assert list(answers.columns) == [f"probability:{label}" for label in ("2", 0.0, 1, 7)]
    np.testing.assert_array_equal(answers.iloc[:, :3], estimator.predict_proba(frame)[:, [2, 0, 1]])
    assert (answers["probability:7"] == 0).all()
    with pytest.raises(InputError, match=r"\[2\]"):
        predict(estimator, _spec(frame, (0, 1, 5)), frame)


def test_regression_has_one_column(frame: pd.DataFrame) -> None:
    estimator = LinearRegression().fit(frame, frame["a"] * 2 + 1)
    answers = predict(estimator, _spec(frame, ()), frame)
    np.testing.assert_allclose(answers["prediction"], frame["a"] * 2 + 1)


def test_a_classifier_without_probabilities_is_refused(
    frame: pd.DataFrame, target: np.ndarray, spec: ModelSpec
) -> None:
    with pytest.raises(InputError, match="CalibratedClassifierCV"):
        predict(LinearSVC().fit(frame, target), spec, frame)


@pytest.mark.parametrize(
    "answer",
    [
        [[0.5, np.nan], [0.5, 0.5]],
        [[0.5, np.inf], [0.5, 0.5]],
        [[0.5, 0.5]],
        [[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]],
        "nothing",
        None,
    ],
)
def test_answers_that_are_no_predictions_are_refused(answer: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(BadOutput):
        predict(_Fixed(answer), _spec(frame, (0, 1)), frame[:2])


def test_one_bad_number_is_counted(frame: pd.DataFrame) -> None:
    with pytest.raises(BadOutput, match="1 of 2 predictions"):
        predict(_Fixed([1.0, np.nan]), _spec(frame, ()), frame[:2])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([0.25, 1.0], [0.25, 1.0]),
        ([[0.25], [1.0]], [0.25, 1.0]),
        ([[0.75, 0.25], [0.0, 1.0]], [0.25, 1.0]),
    ],
)
def test_a_pyfunc_may_answer_probabilities(
    answer: Any, expected: list[float], frame: pd.DataFrame
) -> None:
    estimator = PyfuncEstimator(_Fixed(answer))
    answers = predict_array(estimator, _spec(frame, (0, 1)), frame[:2])
    np.testing.assert_array_equal(answers[:, 0], expected)


@pytest.mark.parametrize("answer", [[0, 1], ["no", "yes"], [-0.5, 2.5], [[0.9, 0.9], [0.1, 0.9]]])
def test_a_pyfunc_that_answers_labels_or_scores_is_refused(
    answer: Any, frame: pd.DataFrame
) -> None:
    with pytest.raises(InputError, match="predict_proba"):
        predict(PyfuncEstimator(_Fixed(answer)), _spec(frame, (0, 1)), frame[:2])


def test_another_flavour_is_loaded_only_when_trusted(tmp_path: Path, frame: pd.DataFrame) -> None:
    mlflow_pyfunc = pyfunc()

    class Half(mlflow_pyfunc.PythonModel):  # type: ignore[name-defined, misc]
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
            return np.full(len(model_input), 0.5)

    folder = tmp_path / "model"
    mlflow_pyfunc.save_model(str(folder), python_model=Half(), pip_requirements=[])
    with pytest.raises(UntrustedArtifact, match="python_function"):
        load_estimator(folder)
    estimator = load_estimator(folder, trust_pickle=True)
    answers = predict(estimator, _spec(frame, (0, 1)), frame[:3])
    assert list(answers["probability"]) == [0.5, 0.5, 0.5]
    with pytest.raises(InputError, match="explicitly"):
        describe(estimator)


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        ([0, 1], "binary", (0, 1)),
        (["b", "a"], "binary", ("a", "b")),
        ([True, False], "binary", (False, True)),
        ([2, 0, 1], "multiclass", (0, 1, 2)),
    ],
)
def test_classifiers_are_described(
    labels: list[Any], task: str, classes: tuple[Scalar, ...], frame: pd.DataFrame
) -> None:
    target = np.array([labels[row % len(labels)] for row in range(len(frame))])
    found = describe(DecisionTreeClassifier().fit(frame, target))
    assert found == (task, classes)
    assert [type(label) for label in found[1]] == [type(label) for label in classes]


def test_other_estimators_are_described_or_refused(frame: pd.DataFrame, target: np.ndarray) -> None:
    assert describe(LinearRegression()) == ("regression", ())
    searched = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(frame, target)
    assert describe(searched) == ("binary", ("no", "yes"))
    for estimator, why in (
        (LogisticRegression(), "classes_"),
        (KMeans(), "classifier or regressor"),
        (DummyClassifier().fit(frame, ["a"] * len(frame)), "two classes"),
        (DecisionTreeClassifier().fit(frame, np.ones((len(frame), 2))), "single target"),
        (object(), "classifier or regressor"),
    ):
        with pytest.raises(InputError, match=why):
            describe(estimator)
