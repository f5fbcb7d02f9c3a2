"""What NannyML estimates on its own example data: what `tests/monitor/test_estimate.py` keeps.

NannyML wants other versions of what shelflife stands on, so this runs in an environment of its own:

    python -m venv nannyml && nannyml/bin/pip install nannyml==0.13.1 statsmodels
    NML_DISABLE_USAGE_LOGGING=1 nannyml/bin/python benchmarks/nannyml_golden.py tests/data/nannyml

It thins the examples that ship with NannyML (Apache License 2.0) to every tenth row (every fifth of
the two-class one), estimates each chunk of 1,000 rows with its defaults, and writes the rows
(Parquet) and the estimates with their sampling error beside what was realised (JSON).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import nannyml as nml
import pandas as pd

CHUNK = 1000


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    pd.set_option("future.infer_string", False)  # NannyML cannot encode Arrow strings
    folder.mkdir(parents=True, exist_ok=True)
    golden: dict[str, Any] = {"nannyml": importlib.metadata.version("nannyml"), "chunk": CHUNK}
    for name, make in (("binary", binary), ("multiclass", multiclass), ("regression", regression)):
        rows, golden[name] = make()
        rows.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def binary() -> tuple[pd.DataFrame, Any]:
    reference, analysis, targets = nml.load_synthetic_car_loan_dataset()
    analysis = analysis.merge(targets, on="id") if "id" in analysis else analysis.join(targets)
    reference, analysis = reference[::5], analysis[::5]
    metrics = ["roc_auc", "f1", "precision", "recall", "accuracy"]
    calculator = nml.CBPE(
        y_pred_proba="y_pred_proba", y_pred="y_pred", y_true="repaid", metrics=metrics,
        chunk_size=CHUNK, problem_type="classification_binary",
    )  # fmt: skip
    found = told(calculator, reference, analysis, metrics)
    both = pd.concat([reference, analysis])
    return pd.DataFrame(
        {"analysis": [0] * len(reference) + [1] * len(analysis),
         "p": both["y_pred_proba"].to_numpy(),
         "said": both["y_pred"].to_numpy("int8"), "y": both["repaid"].to_numpy("int8")}
    ), found  # fmt: skip


def multiclass() -> tuple[pd.DataFrame, Any]:
    reference, analysis, targets = nml.load_synthetic_multiclass_classification_dataset()
    analysis = analysis.merge(targets, on="id")
    reference, analysis = reference[::10], analysis[::10]
    names = ["prepaid_card", "highstreet_card", "upmarket_card"]
    metrics = ["roc_auc", "f1", "precision", "recall", "accuracy"]
    calculator = nml.CBPE(
        y_pred_proba={name: f"y_pred_proba_{name}" for name in names}, y_pred="y_pred",
        y_true="y_true", metrics=metrics, chunk_size=CHUNK,
        problem_type="classification_multiclass",
    )  # fmt: skip
    found = told(calculator, reference, analysis, metrics)
    both = pd.concat([reference, analysis])
    rows = {"analysis": [0] * len(reference) + [1] * len(analysis)}
    rows |= {name: both[f"y_pred_proba_{name}"].to_numpy() for name in names}
    rows["y"] = both["y_true"].to_numpy()
    return pd.DataFrame(rows), found


def regression() -> tuple[pd.DataFrame, Any]:
    reference, analysis, targets = nml.load_synthetic_car_price_dataset()
    analysis = analysis.join(targets[["y_true"]]) if "y_true" not in analysis else analysis
    reference, analysis = reference[::10].copy(), analysis[::10].copy()
    features = ["car_age", "km_driven", "price_new", "accident_count", "door_count", "fuel",
                "transmission"]  # fmt: skip
    metrics = ["mae", "rmse"]
    calculator = nml.DLE(
        feature_column_names=features, y_pred="y_pred", y_true="y_true", metrics=metrics,
        chunk_size=CHUNK, tune_hyperparameters=False,
    )  # fmt: skip
    found = told(calculator, reference, analysis, metrics)
    both = pd.concat([reference, analysis])
    rows = both[features].reset_index(drop=True)
    rows.insert(0, "analysis", [0] * len(reference) + [1] * len(analysis))
    return rows.assign(said=both["y_pred"].to_numpy(), y=both["y_true"].to_numpy()), found


def told(calculator: Any, reference: pd.DataFrame, analysis: pd.DataFrame, names: list[str]) -> Any:
    """Per metric: estimates, sampling errors and realised values of the analysis chunks."""
    calculator.fit(reference)
    frame = calculator.estimate(analysis).filter(period="analysis").to_df()
    found: dict[str, Any] = {}
    for name in names:
        block = frame[name]
        found[name] = {
            "estimate": block["value"].tolist(),
            "error": block["sampling_error"].tolist(),
            "realised": block["realized"].tolist(),
        }
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
