"""A training set, made again later: the identical rows, or what of them is gone.

The run's record names the rows (`rows.parquet`: id, time, label, part) and hashes their values; the
log, or the user's own source, still has the inputs. Labels are those of then, whatever was
corrected since.
"""

from __future__ import annotations

import io
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from core.errors import CorruptSegment, NotFound
from core.spec import ModelSpec
from core.times import utc
from retrain import run as runs
from retrain.dataset import ROLES, Account, Dataset, Slice, content, input_columns
from retrain.run import RunContext
from retrain.source import open_source
from retrain.training import spell_labels
from retrain.wording import plural

if TYPE_CHECKING:
    import pandas as pd

ROWS_FILE = "dataset-rows.parquet"


class DatasetGone(NotFound):
    """Rows of a training set are no longer there; the message names the segments that went."""


def name_rows(data: Dataset) -> pd.DataFrame:
    """Which rows a dataset is made of: `id`, `time`, `y`, `part` (train or holdout), in order."""
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "id": list(part.ids),
                "time": pd.to_datetime(list(part.times), utc=True),
                "y": part.y,
                "part": name,
            }
        )
        for name, part in (("train", data.train), ("holdout", data.holdout))
    ]
    return pd.concat(frames, ignore_index=True)


def rebuild(context: RunContext, run_id: str) -> Dataset:
    """The very rows a run was trained and judged on.

    Raises:
        NotFound: no such run, or its list of rows was not kept.
        DatasetGone: rows or segments are gone (retention, `forget`), named.
        CorruptSegment: the rows are there and hold other values.
    """
    run = runs.load(context.ledger, run_id)
    account = runs.result_of(context.ledger, run_id, "dataset", Account)
    champion = context.registry.get(run.model, run.champion)
    spec = msgspec.json.decode(context.registry.file(champion, "spec.json"), type=ModelSpec)
    named = _named(context, run)
    log = context.log
    if account.source:
        log = open_source(context, spec, known_at=account.known_at)
    rows = log.read(
        spec.name,
        start=account.since,
        end=account.holdout_until + timedelta(microseconds=1),
        roles=ROLES,
    )
    # The last of equal ids stands, as it did then.
    place = {name: index for index, name in enumerate(rows.meta["id"].tolist())}
    lost = [name for name in named["id"] if name not in place]
    if lost:
        raise DatasetGone("training rows", run_id, _explain(account, log.segments(spec.name), lost))
    frame = input_columns(spec, rows.inputs.iloc[[place[name] for name in named["id"]]])
    parts = {name: _slice(frame, named, name) for name in ("train", "holdout")}
    if account.content and content(parts["train"], parts["holdout"]) != account.content:
        raise CorruptSegment(
            f"the rows of run {run_id} are there and hold other values than they did "
            f"(sha256 {account.content[:12]}… recorded)"
        )
    return Dataset(train=parts["train"], holdout=parts["holdout"], account=account)


def table(data: Dataset, spec: ModelSpec) -> pd.DataFrame:
    """A dataset as one table: inputs, the target as it is spelled, `time`, `id` and `part`."""
    import pandas as pd

    frames = []
    for name, part in (("train", data.train), ("holdout", data.holdout)):
        frame = part.inputs.reset_index(drop=True)
        frame[spec.target] = spell_labels(spec, part.y)
        frame["time"] = pd.to_datetime(list(part.times), utc=True)
        frame["id"], frame["part"] = list(part.ids), name
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _named(context: RunContext, run: runs.RunState) -> pd.DataFrame:
    """The run's list of rows: from its work folder, or from the version it made."""
    import pandas as pd

    path = context.folder(run.id) / ROWS_FILE
    if path.is_file():
        return pd.read_parquet(path)
    if run.candidate is None:
        raise NotFound("list of rows of run", run.id, "its work folder was cleaned up")
    version = context.registry.get(run.model, run.candidate)
    return pd.read_parquet(io.BytesIO(context.registry.file(version, ROWS_FILE)))


def _explain(account: Account, there: list[str], lost: list[str]) -> str:
    gone = [name for name in account.segments if name not in there]
    text = f"{plural(len(lost), 'row')} are no longer there, {lost[0]!r} the first"
    if gone:
        text += f"; gone segments: {', '.join(name[:12] + '…' for name in gone)}"
    return text


def _slice(frame: pd.DataFrame, named: pd.DataFrame, part: str) -> Slice:
    rows = (named["part"] == part).to_numpy(bool)
    return Slice(
        inputs=frame[rows].reset_index(drop=True),
        y=named["y"].to_numpy(np.float64)[rows],
        times=tuple(utc(moment.to_pydatetime()) for moment in named["time"][rows]),
        ids=tuple(named["id"][rows]),
    )
