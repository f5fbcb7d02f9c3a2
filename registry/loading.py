"""From a model file to an estimator, and from an estimator to predictions.

Loading a model is loading code, so a file is opened only as far as it is trusted: skops files with
the types of `registry.trusted`; pickles, and flavours of MLflow other than scikit-learn, only for
models an operator names (`trust_pickle`). Nothing here needs MLflow unless such a flavour is met.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from core.errors import BadOutput, InputError, NotFound, UntrustedArtifact
from core.spec import ModelSpec, Scalar, Task
from registry import bounds, trusted

if TYPE_CHECKING:
    import pandas as pd

SKOPS_FILE = "model.skops"
PICKLE_FILE = "model.pkl"
_MLMODEL = "MLmodel"
_ROWS_TO_SUM = 1e-3  # how far probabilities of a row may be from adding up to 1


def save_estimator(estimator: Any, path: Path, *, trust_pickle: bool = False) -> Path:
    """Write a fitted estimator to `path` as skops; returns the file that was written.

    With `trust_pickle`, an estimator that skops cannot hold within the allow-list goes to `path`
    with the suffix `.pkl` as a cloudpickle instead.

    Raises:
        UntrustedArtifact: it contains types outside the allow-list (own classes and
            functions, …), named, and pickles are not trusted.
    """
    import skops.io

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            skops.io.dump(estimator, path)
        except Exception as error:  # skops raises whatever the object's own pickling raises
            raise UntrustedArtifact(
                f"{type(estimator).__name__} cannot be written as skops ({error}); if you trust "
                "it, set `trust_pickle: true` for the model (models.<name>.trust_pickle)"
            ) from error
        types = set(types_beyond_skops(path)) - set(trusted.audit(path))
        if types:
            raise trusted.refused(path, types)
    except UntrustedArtifact:
        path.unlink(missing_ok=True)
        if not trust_pickle:
            raise
        return _save_pickle(estimator, path.with_suffix(".pkl"))
    return path


def types_beyond_skops(path: Path) -> list[str]:
    """The types in a skops file that skops does not trust by itself; nothing is constructed."""
    import skops.io

    return list(skops.io.get_untrusted_types(file=path))


def _save_pickle(estimator: Any, path: Path) -> Path:
    import cloudpickle  # type: ignore[import-untyped]

    with path.open("wb") as file:
        # Not the newest protocol: older Pythons may have to read it.
        cloudpickle.dump(estimator, file, protocol=pickle.DEFAULT_PROTOCOL)
    return path


def load_estimator(folder: Path, *, trust_pickle: bool = False) -> Any:
    """The estimator in a fetched version folder (or in one model file).

    Understands `model.skops` as `save_estimator` writes it, MLflow's scikit-learn flavour (skops,
    pickle, cloudpickle), and with `trust_pickle` any other MLflow flavour through `mlflow.pyfunc`:
    the wrapped scikit-learn style model where there is one, else a `PyfuncEstimator`.

    Raises:
        NotFound: no model there.
        UntrustedArtifact: loading would run what nobody allowed, or the file is damaged.
    """
    if folder.is_file():
        return _load_file(folder, trust_pickle=trust_pickle)
    described = folder / _MLMODEL
    if described.is_file():
        path = _sklearn_file(folder, _flavours(described))
        if path is None:
            return _load_pyfunc(folder, trust_pickle=trust_pickle)
        return _load_file(path, trust_pickle=trust_pickle)
    for name in (SKOPS_FILE, PICKLE_FILE):
        if (folder / name).is_file():
            return _load_file(folder / name, trust_pickle=trust_pickle)
    raise NotFound("model file", str(folder), f"expected {_MLMODEL} or {SKOPS_FILE} in the folder")


def _flavours(described: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(described.read_text())
        return dict(content["flavors"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UntrustedArtifact(
            f"{described.name} is not a sound MLmodel file ({error!r}); log the model anew"
        ) from None


def _sklearn_file(folder: Path, flavours: dict[str, Any]) -> Path | None:
    """The file of the scikit-learn flavour; None where there is no such flavour.

    The MLmodel's own list of trusted types is not looked at.
    """
    flavour = flavours.get("sklearn")
    # Code that travels with a model must be on the path before it is unpickled: MLflow's business.
    if not isinstance(flavour, dict) or flavour.get("code"):
        return None
    return inside(folder, str(flavour.get("pickled_model", PICKLE_FILE)))


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, if that really is a file below the folder.

    Raises:
        UntrustedArtifact: it leads elsewhere (`..`, an absolute path, a symlink) or is no file.
    """
    root, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise UntrustedArtifact(
            f"the model's description names the file {name!r}, which is not a file in its own "
            "folder; log the model anew"
        )
    return path


def _load_file(path: Path, *, trust_pickle: bool) -> Any:
    if path.suffix == ".skops":
        return _load_skops(path, trust_pickle=trust_pickle)
    if not trust_pickle:
        raise UntrustedArtifact(
            f"{path.name} is a pickle, and loading one runs any code its author put there; save "
            "the model as skops, or, if you trust its author, set `trust_pickle: true` for it "
            "(models.<name>.trust_pickle)"
        )
    import joblib  # reads plain pickles as well as its own

    try:
        return joblib.load(path)  # an operator named this model
    except Exception as error:  # unpickling can raise anything
        raise UntrustedArtifact(f"{path.name} cannot be unpickled: {error}") from error


def _load_skops(path: Path, *, trust_pickle: bool) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        if trust_pickle:
            return skops.io.load(path, trusted=types_beyond_skops(path))
        estimator = skops.io.load(path, trusted=trusted.audit(path))
    except UntrustedArtifact:
        raise
    except UntrustedTypesFoundException:
        types = set(types_beyond_skops(path)) - trusted.TRUSTED
        raise trusted.refused(path, types) from None
    except Exception as error:  # a damaged file may make skops or NumPy raise anything
        raise trusted.broken(path, repr(error)) from error
    bounds.check(estimator)
    return estimator


class PyfuncEstimator:
    """A model of another MLflow flavour, known only by its `predict`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, inputs: pd.DataFrame | np.ndarray) -> Any:
        """Whatever the flavour answers: labels, scores, probabilities."""
        return self.model.predict(inputs)


def _load_pyfunc(folder: Path, *, trust_pickle: bool) -> Any:
    if not trust_pickle:
        names = ", ".join(sorted(_flavours(folder / _MLMODEL))) or "none"
        raise UntrustedArtifact(
            f"the model has no plain scikit-learn flavour (its flavours: {names}), and loading "
            "others may run any code; if you trust its author, set `trust_pickle: true` for it "
            "(models.<name>.trust_pickle)"
        )
    model = pyfunc().load_model(str(folder))
    try:
        raw = model.get_raw_model()
    except Exception:  # flavours without one raise MlflowException or AttributeError
        raw = None
    # XGBoost, LightGBM and CatBoost estimators speak scikit-learn; bare boosters do not.
    return raw if hasattr(raw, "predict") and hasattr(raw, "get_params") else PyfuncEstimator(model)


def pyfunc() -> Any:
    """`mlflow.pyfunc`, imported late and without the warning about its own type hints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


def describe(estimator: Any) -> tuple[Task, tuple[Scalar, ...]]:
    """The task of a fitted estimator and its classes as plain Python scalars, in its own order.

    Raises:
        InputError: neither a classifier nor a regressor, or one that is not fitted, has one class,
            or predicts several targets.
    """
    from sklearn.base import is_classifier, is_regressor

    name = type(estimator).__name__
    if isinstance(estimator, PyfuncEstimator):
        raise InputError(
            "task", name, "task and classes given explicitly: this MLflow flavour does not say them"
        )
    try:
        regressor, classifier = is_regressor(estimator), is_classifier(estimator)
    except (AttributeError, TypeError):  # no scikit-learn tags at all
        regressor = classifier = False
    if regressor:
        return "regression", ()
    if not classifier:
        raise InputError("estimator", name, "a fitted scikit-learn classifier or regressor")
    classes = _classes(estimator)
    if len(classes) < 2:
        raise InputError("estimator", name, f"two classes or more, not {list(classes)}")
    return ("binary" if len(classes) == 2 else "multiclass"), classes


def _classes(estimator: Any) -> tuple[Scalar, ...]:
    found = getattr(estimator, "classes_", None)
    if found is None:
        raise InputError("estimator", type(estimator).__name__, "a fitted one, with `classes_`")
    if isinstance(found, list):
        raise InputError("estimator", f"{len(found)} targets", "a single target")
    return tuple(value.item() if isinstance(value, np.generic) else value for value in found)


def predict(estimator: Any, spec: ModelSpec, inputs: pd.DataFrame) -> pd.DataFrame:
    """Predictions for rows of inputs as float64 columns `spec.outputs`, index kept.

    Raises:
        InputError: a column is missing, or the model gives no probabilities where the task needs
            them, or knows classes the spec does not.
        BadOutput: NaN, infinite or misshapen outputs.
    """
    import pandas as pd

    outputs = predict_array(estimator, spec, inputs)
    return pd.DataFrame(outputs, index=inputs.index, columns=spec.outputs)


def predict_array(estimator: Any, spec: ModelSpec, inputs: pd.DataFrame) -> np.ndarray:
    """`predict` without the frame: float64 of shape (rows, len(spec.outputs))."""
    missing = [column for column in spec.columns if column not in inputs.columns]
    if missing:
        raise InputError("inputs", list(inputs.columns), f"also the columns {missing}")
    if list(inputs.columns) != spec.columns:
        inputs = inputs[spec.columns]
    return answers(estimator, spec, inputs)


def answers(estimator: Any, spec: ModelSpec, inputs: pd.DataFrame | np.ndarray) -> np.ndarray:
    """What the estimator says to inputs it takes as they are: float64 (rows, outputs).

    Raises: see `predict`.
    """
    if not len(inputs):
        return np.empty((0, len(spec.outputs)))
    if spec.task == "regression":
        outputs = _matrix(estimator.predict(inputs), "predict", len(inputs), 1)
    else:
        outputs = _probabilities(estimator, spec, inputs)
    if not np.isfinite(outputs).all():
        bad = int((~np.isfinite(outputs).all(axis=1)).sum())
        raise BadOutput(
            f"{spec.name}: {bad} of {len(outputs)} predictions are NaN or infinite; expected "
            "finite numbers, so none of them is used; look at the inputs of those rows"
        )
    return outputs


def _probabilities(
    estimator: Any, spec: ModelSpec, inputs: pd.DataFrame | np.ndarray
) -> np.ndarray:
    """Probabilities of the spec's classes: of the positive one (binary) or of each."""
    if isinstance(estimator, PyfuncEstimator):
        return _pyfunc_probabilities(estimator, spec, inputs)
    if not hasattr(estimator, "predict_proba"):
        raise InputError(
            "estimator",
            type(estimator).__name__,
            "a classifier with predict_proba; wrap it in sklearn's CalibratedClassifierCV, or for "
            "an SVC set probability=True",
        )
    known = _classes(estimator)
    raw = _matrix(estimator.predict_proba(inputs), "predict_proba", len(inputs), len(known))
    order = _order(known, spec.classes)
    wanted = order[1:] if spec.task == "binary" else order
    # A class the estimator never saw in training has probability zero.
    columns = [np.zeros(len(raw)) if index is None else raw[:, index] for index in wanted]
    return np.column_stack(columns)


def class_order(estimator: Any, spec: ModelSpec) -> list[int | None]:
    """Where each class of the spec stands among the estimator's; None: it never saw that class.

    Raises:
        InputError: the estimator knows classes the spec does not.
    """
    return _order(_classes(estimator), spec.classes)


def _order(known: Sequence[Scalar], classes: Sequence[Scalar]) -> list[int | None]:
    """Where each class of the spec stands among the estimator's."""
    # As `ModelSpec.encode_label`: 1, 1.0, True and "1" may be one class, spelled differently.
    order: list[int | None] = []
    for label in classes:
        matches = [i for i, own in enumerate(known) if own == label or str(own) == str(label)]
        order.append(matches[0] if matches else None)
    strangers = [own for index, own in enumerate(known) if index not in order]
    if strangers:
        raise InputError("classes", strangers, f"only classes of the spec: {list(classes)}")
    return order


def _pyfunc_probabilities(
    estimator: PyfuncEstimator, spec: ModelSpec, inputs: pd.DataFrame | np.ndarray
) -> np.ndarray:
    raw = np.asarray(estimator.predict(inputs))
    hint = (
        "probabilities as floats, in the order of the spec's classes; a model that answers labels "
        "can be logged with pyfunc_predict_fn='predict_proba'"
    )
    if raw.dtype.kind != "f":
        raise InputError("outputs", raw.ravel()[:3].tolist(), hint)
    width = len(spec.classes)
    if raw.ndim == 2 and raw.shape[1] == width:
        raw = _matrix(raw, "predict", len(inputs), width)
        within = np.abs(raw.sum(axis=1) - 1) <= _ROWS_TO_SUM
        outputs = raw[:, 1:] if spec.task == "binary" else raw
    else:
        # One score per row can only be the probability of the positive class.
        outputs = _matrix(raw, "predict", len(inputs), 1 if spec.task == "binary" else width)
        within = np.full(len(outputs), True)
    finite = np.isfinite(outputs).all(axis=1)
    sound = within & ((outputs >= 0) & (outputs <= 1)).all(axis=1)
    if not (sound | ~finite).all():
        raise InputError("outputs", outputs[~sound][0].tolist(), hint)
    return outputs


def _matrix(values: Any, method: str, rows: int, width: int) -> np.ndarray:
    """What a method returned as float64 of shape (rows, width)."""
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadOutput(f"{method} returned {type(values).__name__}, expected numbers") from None
    if matrix.ndim == 1 and width == 1:
        matrix = matrix[:, None]
    if matrix.shape != (rows, width):
        raise BadOutput(f"{method} returned the shape {matrix.shape}, expected {(rows, width)}")
    return cast("np.ndarray", matrix)
