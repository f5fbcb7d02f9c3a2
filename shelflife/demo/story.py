"""The stream that the demo replays, and the model it starts with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import NotFound

MODEL = "repurchase"
START = datetime(2010, 4, 1, tzinfo=UTC)
STEP = timedelta(days=7)  # one check a week of event time
TARGET = "bought_again"
NUMBERS = [
    "basket_value",
    "basket_lines",
    "basket_units",
    "days_since_previous",
    "previous_invoices",
    "lifetime_value",
    "days_since_first",
    "hour",
]
CATEGORIES = ["country", "weekday"]
INPUTS = [*NUMBERS, *CATEGORIES]
DATA = Path(__file__).resolve().parents[2] / "data" / "retail.parquet"

ABOUT = (
    "34,236 real invoices of a UK online gift retailer, December 2009 to November 2011 (Online "
    "Retail II, UCI Machine Learning Repository, D. Chen, CC BY 4.0). The model answers whether "
    "the customer buys again within 30 days; each label is known 30 days after its invoice."
)
CAVEAT = (
    "The customer-history columns (days_since_first, lifetime_value, previous_invoices) keep "
    "growing after the records begin, as they do in any young production system: part of the "
    "decay is theirs."
)

SETTINGS = """\
# The demo's settings; written by `shelflife demo`.
home: home
environment: demo
mlflow:
  port: {mlflow}
serving:
  port: {serving}
dashboard:
  port: {dashboard}
receivers:
  - name: on-call
    type: webhook
    url: {receiver}
    secret: env:SHELFLIFE_DEMO_SECRET
    allow: [127.0.0.1]
models:
  repurchase:
    owner: retention team
    check_every: 7d
    window: 28d
    label_delay: 30d
    tolerance: 0.1
    false_alarms_per_quarter: 1
    repeat_every: 90d
    retrain:
      mode: auto
      cooldown: 28d
"""


def stream(path: Path = DATA, *, until: datetime | None = None) -> pd.DataFrame:
    """All invoices (before `until`) in order of time, times in UTC.

    Raises:
        NotFound: the data are not here: they come with a clone, not with an installed package.
    """
    if not path.is_file():
        raise NotFound("data file", str(path), "run the demo from a clone: `make demo`")
    frame = pd.read_parquet(path)
    for column in ("invoice_time", "label_time"):
        frame[column] = frame[column].dt.tz_localize("UTC")
    frame = frame.sort_values("invoice_time", kind="stable", ignore_index=True)
    return frame if until is None else frame[frame["invoice_time"] < until]


def first_model() -> Any:
    """The pipeline that version 1 is: ordinary scikit-learn, as anybody would write it."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
    )
    columns = make_column_transformer(
        (encoder, CATEGORIES), remainder="passthrough", verbose_feature_names_out=False
    )
    boosting = HistGradientBoostingClassifier(max_iter=50, learning_rate=0.05, random_state=0)
    return make_pipeline(columns, boosting)
