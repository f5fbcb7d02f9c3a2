"""The OpenAPI document is true: Schemathesis asks a running server all it allows, and more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shelflife.web import openapi

HERE = Path(__file__).parent
#: `make fuzz` asks for many more, on PostgreSQL too.
FUZZING = os.environ.get("SCHEMATHESIS_EXAMPLES", "")
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method,"
    "allow_header_conformance"
)


def test_every_route_is_in_the_document_and_nothing_else(web: Any) -> None:
    document = web.client.get("/openapi.json").json()
    assert document == json.loads(openapi.encoded())
    from shelflife import server

    router, _ = server.routed(web.service, web.service.log)
    routed = {
        (route.path, method.lower())
        for route in router.routes
        for method in route.methods - {"HEAD"}
    }
    written = {
        (path, method)
        for path, item in document["paths"].items()
        for method in item
        if method in ("get", "post")
    }
    assert routed == written


def test_every_reference_leads_somewhere() -> None:
    document = openapi.document()
    text = str(document)
    names = set(document["components"]["schemas"])
    used = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= names


def test_schemathesis_finds_no_lie(ready_web: Any, tmp_path: Path) -> None:
    _ask(ready_web, FUZZING or "3", tmp_path)


@pytest.mark.postgres
@pytest.mark.skipif(not FUZZING, reason="part of `make fuzz`")
def test_schemathesis_finds_no_lie_on_postgres(
    run: Any, tmp_path: Path, postgres_database: str
) -> None:
    with run(tmp_path, postgres_database, alone=True) as web:
        web.wait_until_ready()
        _ask(web, FUZZING, tmp_path)


def _ask(web: Any, examples: str, folder: Path) -> None:
    body = {"by": "x"}
    assert web.post("/api/v1/models/shop/actions/check", json=body).status_code == 202
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", "--request-timeout", "60",
        f"http://127.0.0.1:{web.port}/openapi.json", "--checks", CHECKS, "--mode", "all",
        "--max-examples", examples, "--seed", SEED, "--no-shrink", "--phases",
        "examples,coverage,fuzzing", "--suppress-health-check", "all", "--warnings", "off",
        "--continue-on-failure", "--no-color",
        # It does what it says, and nothing answers afterwards; tests/serving has it.
        "--exclude-path-regex", "/unload$",
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert web.service.log.counts("shop").predictions > 0  # it did get through to the log
