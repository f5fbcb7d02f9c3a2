"""A user's own source of labelled rows, in the place of the inference log.

`retrain.source` names a Parquet file or folder, a database (`sql:env:NAME`, with a query), or a
function `package.module:function(model, known_at)` that returns a frame. Each gives one row per
labelled example: the inputs, the target, `time` (event time), and if it has them `id` and
`label_time` (when the label became known). A function runs in a subprocess and sees only the
environment variables that the settings name.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import InputError, TrainerFailed
from core.files import sha256_file
from core.settings import RetrainSettings, secret, span
from core.spec import ModelSpec
from core.times import iso, parse_time
from monitor.log.records import Role, Rows

if TYPE_CHECKING:
    import pandas as pd

    from retrain.run import RunContext

_NEEDED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_TAIL = 1500  # characters of a failed function's last words


class Source:
    """A frame of labelled rows behind the `read` of a `SampleLog`; nothing else of it."""

    def __init__(self, frame: pd.DataFrame, spec: ModelSpec, sha256: str) -> None:
        self._frame, self._spec, self._sha256 = _checked(frame, spec), spec, sha256

    def read(
        self,
        model: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        known_at: datetime | None = None,
        known_after: datetime | None = None,
        roles: Sequence[Role] = ("champion", "challenger"),
        version: str | None = None,
        labelled: bool = False,
        newest: int | None = None,
        inputs: bool = True,
    ) -> Rows:
        """The rows known at a moment, in order of time; see `SampleLog.read`."""
        import pandas as pd

        frame = self._frame
        for column, moment, newer in (
            ("time", start, True),
            ("time", end, False),
            ("label_time", known_at, False),
        ):
            if moment is not None:
                edge = pd.Timestamp(moment)
                values = frame[column]
                late = values <= edge if column == "label_time" else values < edge
                frame = frame[values >= edge if newer else late]
        frame = frame.sort_values("time", kind="stable")
        frame = (frame if newest is None else frame.tail(newest)).reset_index(drop=True)
        meta = frame[["id", "time", "label_time"]].assign(
            version="",
            role="history",
            source="source",
            label=frame[self._spec.target].astype(object),
        )
        blank = pd.DataFrame(np.nan, index=frame.index, columns=self._spec.outputs)
        known = [name for name in self._spec.columns if name in frame.columns]
        return Rows(
            meta=meta, inputs=frame[known], outputs=blank, segments=(self._sha256,), problems=()
        )

    def segments(self, model: str) -> list[str]:
        """The hash of what was read, in the place of segments."""
        return [self._sha256]


def open_source(context: RunContext, spec: ModelSpec, *, known_at: datetime) -> Any:
    """The rows of the source that the settings name.

    Raises:
        TrainerFailed: it cannot be read, or lacks a column.
    """
    settings = context.settings.retrain
    folder = (context.user_folder or Path.cwd()).resolve()
    frame, sha256 = read(settings, spec, folder, known_at=known_at)
    try:
        return Source(frame, spec, sha256)
    except InputError as error:
        raise TrainerFailed(f"retrain.source {settings.source}: {error}") from None


def read(
    settings: RetrainSettings, spec: ModelSpec, folder: Path, *, known_at: datetime
) -> tuple[pd.DataFrame, str]:
    """The source's frame, and a SHA-256 of what was read."""
    import pandas as pd

    name = settings.source
    if name.startswith("sql:"):
        frame = _query(name.removeprefix("sql:"), settings.source_query)
        return frame, _sha256(frame)
    path = (folder / name).resolve()
    if path.exists():
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        digest = hashlib.sha256("".join(sha256_file(file) for file in files).encode())
        return pd.read_parquet(path), digest.hexdigest()
    if ":" not in name:
        raise TrainerFailed(f"retrain.source {name}: there is no such file in {folder}")
    frame = _call(settings, spec, folder, known_at)
    return frame, _sha256(frame)


def _query(reference: str, query: str) -> pd.DataFrame:
    import pandas as pd
    import sqlalchemy as sa

    url = secret(reference)
    if url is None or not query.strip():
        raise TrainerFailed("retrain.source sql:… needs a database URL and retrain.source_query")
    engine = sa.create_engine(url.reveal())
    try:
        with engine.connect() as connection:
            return pd.read_sql_query(sa.text(query), connection)
    except sa.exc.SQLAlchemyError as error:
        # The driver's own words, not SQLAlchemy's: those may repeat the URL.
        said = str(getattr(error, "orig", "")) or type(error).__name__
        raise TrainerFailed(f"retrain.source {reference}: {said}") from None
    finally:
        engine.dispose()


def _call(
    settings: RetrainSettings, spec: ModelSpec, folder: Path, known_at: datetime
) -> pd.DataFrame:
    """What the user's function returns, called in a subprocess."""
    import pandas as pd

    names = (*_NEEDED, *settings.source_environment)
    passed = {name: os.environ[name] for name in names if name in os.environ}
    passed["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory(prefix="shelflife-source-") as work:
        target = Path(work, "rows.parquet")
        command = [sys.executable, "-P", "-m", "retrain.source", settings.source, spec.name]
        try:
            done = subprocess.run(
                [*command, iso(known_at), str(folder), str(target)],
                env=passed,
                capture_output=True,
                text=True,
                timeout=span(settings.time_limit).total_seconds(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TrainerFailed(
                f"retrain.source {settings.source} ran over {settings.time_limit}"
            ) from None
        if done.returncode or not target.is_file():
            said = (done.stderr or done.stdout).strip()[-_TAIL:]
            raise TrainerFailed(f"retrain.source {settings.source} failed:\n{said}")
        return pd.read_parquet(target)


def _checked(frame: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    import pandas as pd

    missing = [name for name in (spec.target, "time") if name not in frame.columns]
    missing += [name for name in spec.columns if name not in frame.columns]
    if missing:
        raise InputError("columns", list(map(str, frame.columns)), f"also {', '.join(missing)}")
    frame = frame[frame[spec.target].notna()].copy()
    for name in ("time", "label_time"):
        source = name if name in frame.columns else "time"
        frame[name] = pd.to_datetime(frame[source], utc=True)
    if "id" not in frame.columns:
        frame["id"] = [f"row{index}" for index in range(len(frame))]
    frame["id"] = frame["id"].astype(str)
    return frame


def _sha256(frame: pd.DataFrame) -> str:
    import pandas as pd

    return hashlib.sha256(pd.util.hash_pandas_object(frame).to_numpy().tobytes()).hexdigest()


def main(reference: str, model: str, known_at: str, folder: str, target: str) -> None:
    """Call the user's function and write its frame; the caller is `_call`."""
    sys.path.append(folder)  # last: no file of theirs shadows one of ours
    module, _, name = reference.partition(":")
    frame = getattr(importlib.import_module(module), name)(model, parse_time(known_at))
    frame.to_parquet(target, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
