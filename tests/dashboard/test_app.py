"""Every page, run by Streamlit's own test runner."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from core.ledger import Ledger

SCRIPT = Path(dashboard.__file__).with_name("app.py")
FOLDER = SCRIPT.parent
Open = Callable[..., AppTest]


@pytest.fixture
def opened() -> Open:
    """Opens a page as its address does."""

    def run(page: str = "", **parameters: str) -> AppTest:
        app = AppTest.from_file(str(SCRIPT), default_timeout=30)
        if page:
            app.run()
            app.switch_page(f"page_{page}.py")
        for name, value in parameters.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception, app.exception
        return app

    return run


def said(app: AppTest) -> str:
    """Every text on the page, one a line, Markdown's escapes undone."""
    kinds = ("header", "subheader", "markdown", "caption", "info", "warning", "code", "page_link")
    lines = [e for kind in kinds for e in app.get(kind)]
    texts = [str(getattr(e, "value", None) or getattr(e, "label", "") or "") for e in lines]
    texts += [f"{e.label} {e.value}" for e in app.metric]
    return re.sub(r"\\(.)", r"\1", "\n".join(texts))


@pytest.mark.usefixtures("environment")
def test_the_fleet(opened: Open) -> None:
    text = said(opened())
    names = [text.index(name) for name in ("evil", "repurchase", "eta", "churn", "fraud")]
    assert names == sorted(names)
    assert ":orange-badge[▲ decaying]" in text
    assert "Brier score **0.213** :gray[of 0.190 tolerated]" in text
    assert "[0.205, 0.221] · n 1,312 · 62 % labelled" in text
    assert "No check yet" in text
    assert "Incident 42" in text
    assert "Run 8f3c1d2e: gate" in text
    assert "replayed history, as of 12 Oct 2026, 14:04 UTC" in text


@pytest.mark.usefixtures("environment")
def test_the_fleet_filtered_by_its_address(opened: Open) -> None:
    text = said(opened(state="drifting"))
    assert "eta" in text
    assert "fraud" not in text
    assert "fraud" in said(opened(state="nonsense"))


@pytest.mark.usefixtures("environment")
def test_a_filter_goes_into_the_address(opened: Open) -> None:
    app = opened()
    app.pills[0].set_value("healthy").run()
    assert app.query_params["state"] in ("healthy", ["healthy"])
    assert "repurchase" not in said(app)


@pytest.mark.usefixtures("environment")
def test_the_model(opened: Open) -> None:
    app = opened("model", name="repurchase")
    text = said(app)
    assert "v3 champion since 1 Sep (41 d) · decaying since 8 Oct (4 d)" in text
    assert "Brier score 0.213" in text
    assert "95 % [0.205, 0.221] · n 1,312" in text
    assert "7 quiet columns" in text
    assert "What would change this: less than 0.5 runs lost" in text
    assert "v3 became champion after v2" in text
    assert {"Check now", "Retrain", "Roll back"} <= {button.label for button in app.button}
    assert len(app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")) == 2
    (link,) = app.get("link_button")
    assert link.proto.url == "http://127.0.0.1:5000/#/models/repurchase/versions/3"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("span", ["30d", "365d", "nonsense"])
def test_the_model_over_a_range(opened: Open, span: str) -> None:
    assert "Brier score over time" in said(opened("model", name="repurchase", range=span))


@pytest.mark.usefixtures("environment")
def test_a_model_without_a_check(opened: Open) -> None:
    text = said(opened("model", name="churn"))
    assert "No check yet" in text
    assert "Check now" in {button.label for button in opened("model", name="churn").button}


@pytest.mark.usefixtures("environment")
def test_no_model_named_and_an_unknown_one(opened: Open) -> None:
    assert "Which model?" in said(opened("model"))
    text = said(opened("model", name="nobody"))
    assert "There is nothing here" in text
    assert "No model 'nobody'" in text


@pytest.mark.usefixtures("environment")
def test_the_incidents(opened: Open) -> None:
    text = said(opened("incidents"))
    assert "Incident 42" in text
    assert "Incident 41" not in text
    text = said(opened("incidents", show="resolved"))
    assert "country 100 % missing" in text
    assert "lasted 1 d" in text
    assert "No resolved incidents" in said(opened("incidents", show="resolved", model="fraud"))


@pytest.mark.usefixtures("environment")
def test_an_incident(opened: Open) -> None:
    app = opened("incidents", id="42")
    text = said(app)
    assert "**opened** · repurchase is decaying" in text
    assert "✓ delivered" in text
    assert "attempt 3: the receiver answered 503" in text
    assert "shelflife check repurchase --at 2026-10-09T14:05:00Z" in text
    (button,) = app.get("download_button")
    assert button.proto.label == "Evidently report (HTML)"
    assert "making it failed" in said(opened("incidents", id="41"))
    assert "answered 204" in text


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("asked", ["7", "-1", "x", "9" * 40, "²"])
def test_an_incident_that_is_not_there(opened: Open, asked: str) -> None:
    assert "There is nothing here" in said(opened("incidents", id=asked))


@pytest.mark.usefixtures("environment")
def test_a_report_outside_home_is_not_offered(home: Path) -> None:
    from dashboard.source import Desk, read_environment

    desk = Desk(read_environment())
    (home.parent / "secret.html").write_text("no")
    assert desk.report("reports/incident-42.html") is not None
    for path in ("../secret.html", str(home.parent / "secret.html"), "reports", "missing", None):
        assert desk.report(path) is None


@pytest.mark.usefixtures("environment")
def test_the_runs(opened: Open) -> None:
    text = said(opened("runs", model="repurchase"))
    assert "decay has cost 0.9 runs" in text
    assert ":blue-badge[▶ running] :gray[at gate]" in text
    assert "v2 → v3" in text
    text = said(opened("runs", id="c07e5512"))
    assert "not proven on 611 rows" in text
    assert "Gain 0.00200" in text
    text = said(opened("runs", id="8f3c1d2e"))
    assert "**dataset** done · 1 min" in text
    assert "rows 18,211 · labelled 17,640 · left out 12" in text
    assert "No candidate has been compared yet" in text


# Begun by a character that is not escaped, or a mark that turns the line around.
MARKUP = re.compile(r"(?<!\\)(<img|\[click|:red\[|\*\*bold|\$x)|\u202e")
HOSTILE_PAGES: tuple[tuple[str, dict[str, str]], ...] = (
    ("", {}),
    ("model", {"name": "evil"}),
    ("incidents", {}),
    ("incidents", {"id": "66"}),
    ("runs", {}),
    ("runs", {"id": "<b>run</b>"}),
    ("model", {"name": "<img onerror=alert(1)>"}),
)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("page", "parameters"), HOSTILE_PAGES)
def test_data_is_never_markup(opened: Open, page: str, parameters: dict[str, str]) -> None:
    app = opened(page, **parameters)
    for element in app.markdown:
        if "<style>" not in element.value:  # our own, without data
            assert not element.proto.allow_html
    for kind in ("markdown", "caption", "header", "info", "page_link"):
        for found in app.get(kind):
            text = str(getattr(found, "value", "") or getattr(found, "label", ""))
            assert not MARKUP.search(text), text


def test_no_unsafe_html_anywhere() -> None:
    for path in FOLDER.glob("*.py"):
        assert "unsafe_allow_html" not in path.read_text()


def test_an_empty_ledger_says_what_to_do(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger(url).create().close()
    monkeypatch.setenv("SHELFLIFE_LEDGER", url)
    monkeypatch.delenv("SHELFLIFE_CLOCK", raising=False)
    text = said(opened())
    assert "No models yet" in text
    assert "shelflife demo" in text
    assert "No open incidents" in said(opened("incidents"))
    assert "No retraining run yet" in said(opened("runs"))
    assert "No models yet" in said(opened("model"))


def test_no_environment(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHELFLIFE_LEDGER", raising=False)
    text = said(opened())
    assert "SHELFLIFE_LEDGER is not set" in text
    assert "shelflife demo" in text


def test_a_missing_ledger_is_not_created(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nowhere" / "ledger.db"
    monkeypatch.setenv("SHELFLIFE_LEDGER", f"sqlite:///{path}")
    assert "There is no ledger at" in said(opened())
    assert not path.parent.exists()


def test_a_ledger_that_cannot_be_read(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, " * 100)
    monkeypatch.setenv("SHELFLIFE_LEDGER", f"sqlite:///{path}")
    text = said(opened())
    assert "The ledger cannot be read" in text
    assert "File is not a database" in text
    assert "SELECT" not in text


def test_a_ledger_lost_under_the_open_page(
    opened: Open, seed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    seed.fill(path).close()
    monkeypatch.setenv("SHELFLIFE_LEDGER", f"sqlite:///{path}")
    app = opened()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE outbox")
    connection.close()
    import streamlit as st

    st.cache_data.clear()
    assert "No such table" in said(app.run())


def test_a_password_is_never_shown(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFLIFE_LEDGER", "postgresql+psycopg://me:hunter2@127.0.0.1:1/none")
    text = said(opened())
    assert "The ledger cannot be read" in text
    assert "hunter2" not in text


def test_an_unwatched_fleet_says_so(
    opened: Open, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELFLIFE_CLOCK", "wall")
    monkeypatch.setattr("dashboard.source.Desk._now", _later)
    text = said(opened())
    assert "have not been checked for" in text
    assert "as of 12 Oct, 14:04 UTC, 19 d ago" in text
    assert "shelflife doctor" in text
    assert "has not been checked for" in said(opened("model", name="fraud"))


def _later(_desk: Any) -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 11, 1, tzinfo=UTC)
