"""ONNX graphs of fitted estimators and PyTorch modules; runs in the preparing subprocess."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.spec import ModelSpec
from serving import steps
from serving.backend import NotApplicable, Subject
from serving.backends.forest import Forest, forest_of
from serving.backends.heads import Order, order_of

_OPSET, _ML_OPSET, _IR = 18, 5, 9
_MODES = {"<=": 0, "<": 1}  # of TreeEnsemble's nodes
_MOST_OUTPUTS = 32  # a leaf with a vector is written once per output
_WORTH_QUANTISING = 4096  # weights; below that int8 saves nothing

More = dict[str, Any]


def module_of(estimator: Any) -> Any:
    """The PyTorch module inside a loaded MLflow model; None for any other."""
    from registry.loading import PyfuncEstimator

    if not isinstance(estimator, PyfuncEstimator):
        return None
    try:
        raw = estimator.model.get_raw_model()
    except Exception:  # flavours without one raise MlflowException or AttributeError
        return None
    roots = {each.__module__.partition(".")[0] for each in type(raw).__mro__}
    return raw if "torch" in roots else None


def last_step(estimator: Any) -> Any:
    """The estimator at the end of a pipeline."""
    while type(estimator).__name__ == "Pipeline" and hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def whole(subject: Subject) -> tuple[bytes, More]:
    """The whole pipeline in single precision.

    Raises:
        NotApplicable: skl2onnx does not know a part of it.
    """
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    spec = subject.spec
    if _takes_a_matrix(subject.estimator, spec):
        types = [("inputs", FloatTensorType([None, len(spec.features)]))]
    else:
        types = [
            (f.name, (StringTensorType if f.kind == "categorical" else FloatTensorType)([None, 1]))
            for f in spec.features
        ]
    graph = _converted(subject.estimator, types, spec)
    return _described(graph, spec, order_of(subject.estimator, spec), "float32")


def in_double(subject: Subject) -> tuple[bytes, More, steps.Program | None]:
    """The last step in double precision, and the program that runs before it.

    Raises:
        NotApplicable: an unknown transformer, or a last step without a graph in double precision.
    """
    from skl2onnx.common.data_types import DoubleTensorType

    program, last = steps.split(subject.estimator, subject.spec)
    order = order_of(last, subject.spec)
    try:
        graph = _trees(forest_of(last))
    except NotApplicable as error:
        if hasattr(last, "get_booster") or hasattr(last, "booster_"):
            raise
        width = getattr(last, "n_features_in_", None)
        if width is None:
            raise error from None
        types = [("inputs", DoubleTensorType([None, int(width)]))]
        graph = _converted(last, types, subject.spec)
    data, more = _described(graph, subject.spec, order, "float64")
    return data, more, program


def from_torch(subject: Subject) -> tuple[bytes, More]:
    """A PyTorch module as torch's exporter writes it.

    Raises:
        NotApplicable: it cannot export the module.
    """
    import onnx
    import torch

    module = module_of(subject.estimator).eval()
    example = torch.zeros(2, len(subject.spec.features), dtype=torch.float32)
    buffer = io.BytesIO()
    try:
        torch.onnx.export(
            module,
            (example,),
            buffer,
            dynamo=False,  # the new exporter takes seconds and a package of its own
            opset_version=17,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_axes={"inputs": {0: "rows"}, "outputs": {0: "rows"}},
        )
    except Exception as error:  # whatever the module's code does to the exporter
        raise NotApplicable(f"torch cannot export it: {_first_line(error)}") from None
    graph = onnx.load_model_from_string(buffer.getvalue())
    return _described(graph, subject.spec, list(range(len(subject.spec.classes))), "float32")


def quantised(data: bytes) -> bytes:
    """A graph with its matrix products in int8, activations quantised as they come.

    Raises:
        NotApplicable: there are no weights worth it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load_model_from_string(data)
    products = {node.op_type for node in graph.graph.node} & {"MatMul", "Gemm"}
    weights = sum(int(np.prod(each.dims)) for each in graph.graph.initializer)
    if not products or weights < _WORTH_QUANTISING:
        raise NotApplicable(f"{weights} weights: too few for int8 to save anything")
    with tempfile.TemporaryDirectory() as work:
        before, after = Path(work, "before.onnx"), Path(work, "after.onnx")
        before.write_bytes(data)
        try:
            quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        except Exception as error:  # the tool raises what it likes
            raise NotApplicable(f"quantize_dynamic: {_first_line(error)}") from None
        return after.read_bytes()


def _takes_a_matrix(estimator: Any, spec: ModelSpec) -> bool:
    first = estimator
    while type(first).__name__ == "Pipeline" and hasattr(first, "steps"):
        first = first.steps[0][1]
    plain = all(feature.kind != "categorical" for feature in spec.features)
    return plain and type(first).__name__ not in ("ColumnTransformer", "FeatureUnion")


def _converted(estimator: Any, types: list[Any], spec: ModelSpec) -> Any:
    from skl2onnx import convert_sklearn

    options = {} if spec.task == "regression" else {"zipmap": False}
    try:
        # Without a name it would draw a random one, and no two conversions were alike.
        return convert_sklearn(estimator, "shelflife", initial_types=types, options=options or None)
    except Exception as error:  # skl2onnx raises RuntimeError, NameError, KeyError, …
        raise NotApplicable(f"skl2onnx: {_first_line(error)}") from None


def _described(graph: Any, spec: ModelSpec, order: Order, dtype: str) -> tuple[bytes, More]:
    data = graph.SerializeToString(deterministic=True)
    return data, {
        "order": order,
        "output": graph.graph.output[-1].name,
        "names": [each.name for each in graph.graph.input],
        "dtype": dtype,
        "bytes": len(data),
    }


def _trees(forest: Forest) -> Any:
    """A graph of one `TreeEnsemble` node in double precision, and the link behind it."""
    import onnx
    from onnx import TensorProto, helper

    single = forest.threshold.dtype == np.float32
    nodes, source = [], "inputs"
    if single:  # the library compares in single precision; doubles hold every single exactly
        nodes.append(helper.make_node("Cast", ["inputs"], ["single"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Cast", ["single"], ["double"], to=TensorProto.DOUBLE))
        source = "double"
    nodes.append(_ensemble(forest, source, "sums"))
    nodes += _link(forest)
    graph = helper.make_graph(
        nodes,
        "shelflife",
        [helper.make_tensor_value_info("inputs", TensorProto.DOUBLE, [None, forest.inputs])],
        [helper.make_tensor_value_info("outputs", TensorProto.DOUBLE, [None, forest.outputs])],
        initializer=[onnx.numpy_helper.from_array(forest.base, "base")],
    )
    opsets = [helper.make_opsetid("ai.onnx.ml", _ML_OPSET), helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)


def _ensemble(forest: Forest, source: str, result: str) -> Any:
    from onnx import helper
    from onnx.numpy_helper import from_array

    copies = forest.outputs if forest.target[0] < 0 else 1
    if copies > _MOST_OUTPUTS:
        raise NotApplicable(f"{copies} outputs in every leaf")
    count = len(forest.feature)
    own = np.arange(count)
    leaf = forest.children[:, 0] == own
    inner, leaves = np.flatnonzero(~leaf), np.flatnonzero(leaf)
    place = np.empty(count, dtype=np.int64)  # of a node among its kind
    place[inner], place[leaves] = np.arange(len(inner)), np.arange(len(leaves))
    tree = np.searchsorted(forest.roots, leaves, side="right") - 1
    weights, targets, blocks = [], [], range(copies)
    for copy in blocks:
        weights.append(forest.value[leaves, copy])
        targets.append(np.full(len(leaves), copy) if copies > 1 else forest.target[tree])
    if copies == 1 and forest.target[0] < 0:
        targets = [np.zeros(len(leaves), dtype=np.int64)]

    def shifted(children: np.ndarray) -> np.ndarray:
        step = np.where(leaf[children], len(leaves), len(inner))
        return np.concatenate([place[children] + copy * step for copy in blocks])

    def repeated(array: np.ndarray) -> list[int]:
        return list(np.tile(array, copies).astype(np.int64).tolist())

    other, below = forest.children[inner, 0], forest.children[inner, 1]
    scale = len(forest.roots) if forest.average else 1
    threshold = np.tile(forest.threshold[inner].astype(np.float64), copies)
    modes = np.full(len(threshold), _MODES[forest.below], dtype=np.uint8)
    return helper.make_node(
        "TreeEnsemble",
        [source],
        [result],
        domain="ai.onnx.ml",
        n_targets=forest.outputs,
        aggregate_function=1,  # the sum
        post_transform=0,
        tree_roots=np.concatenate(
            [place[forest.roots] + copy * len(inner) for copy in blocks]
        ).tolist(),
        nodes_featureids=repeated(forest.feature[inner]),
        nodes_splits=from_array(threshold, "splits"),
        nodes_modes=from_array(modes, "modes"),
        nodes_truenodeids=shifted(below).tolist(),
        nodes_trueleafs=repeated(leaf[below]),
        nodes_falsenodeids=shifted(other).tolist(),
        nodes_falseleafs=repeated(leaf[other]),
        nodes_missing_value_tracks_true=repeated(forest.missing_below[inner]),
        leaf_targetids=np.concatenate(targets).astype(np.int64).tolist(),
        leaf_weights=from_array(np.concatenate(weights) / scale, "weights"),
    )


def _link(forest: Forest) -> list[Any]:
    from onnx import helper

    nodes = [helper.make_node("Add", ["sums", "base"], ["total"])]
    operators = {"sigmoid": "Sigmoid", "softmax": "Softmax", "exponential": "Exp"}
    operator = operators.get(forest.link, "Identity")
    return [*nodes, helper.make_node(operator, ["total"], ["outputs"])]


def _first_line(error: BaseException) -> str:
    found = error.__cause__ or error
    text = str(found).strip().splitlines()
    return f"{type(found).__name__}: {text[0][:160] if text else ''}"
