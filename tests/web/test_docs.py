"""The examples of docs/ingest.md do what it says, typed as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ingest.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_example_in_order(web: Any) -> None:
    told: Any = None
    ran = 0
    for kind, text in BLOCKS:
        here = text.replace("127.0.0.1:8080", f"127.0.0.1:{web.port}")
        if kind == "sh":
            done = subprocess.run(
                ["bash", "-c", here], capture_output=True, text=True, check=True, timeout=60
            )
            told = json.loads(done.stdout)
            ran += 1
        elif kind == "json":
            assert told == json.loads(text)
        elif kind == "python":
            names: dict[str, Any] = {}
            exec(compile(here, "docs/ingest.md", "exec"), names)
            assert names["answer"].json()["new"] == 2
    assert ran == 5
    ids = [each["prediction_id"] for each in web.rows()]
    assert ids == [f"order-{n}" for n in (17, 19, 20, 21, 22)] + ["7f3a:0", "7f3a:1"]


def test_every_limit_is_the_default_it_says() -> None:
    from core.settings import IngestSettings
    from shelflife.web import limits

    chosen = IngestSettings()
    for text in (
        f"`ingest.max_body_mb`, {chosen.max_body_mb:g} MB",
        f"`ingest.max_rows`, {chosen.max_rows:,}",
        f"`ingest.read_within`, {chosen.read_within.replace('s', ' s')}",
        f"`ingest.future`, {chosen.future.replace('m', ' min')}",
        f"`ingest.pair_within` ({chosen.pair_within.replace('h', ' h')})",
        f"{limits.MAX_ID} · {limits.MAX_SOURCE} · {limits.MAX_VERSION} characters",
    ):
        assert text in PAGE, text
