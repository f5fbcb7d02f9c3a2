"""The whole way in a real browser, over a real installation: serve, watch and dashboard running.

From the fleet to the worst model to its column; an incident acknowledged; a candidate approved and
served; a backtest run and taken over.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import shop
import sqlalchemy as sa
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core import schema
from core.settings import load
from dashboard import launch
from shelflife.deploying import deploy_all
from shelflife.register import register
from shelflife.runs import advance
from shelflife.service import Service
from shelflife.tick import tick

CHROMIUM = "/usr/bin/chromium"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]
DAY = timedelta(days=1)
#: The newest check is of today: traffic and checks meet the same clock as the workers.
TODAY = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
START = TODAY - 9 * DAY
SETTINGS = """\
home: home
defaults:
  check_every: 4w
  window: 7d
  label_delay: 1d
  retrain:
    mode: approve
    min_new_labels: 100
    cooldown: 1d
    gate: {min_rows: 50, max_rows: 200, report: false}
serving: {port: %d}
dashboard: {port: %d}
"""


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def demo(folder: Path) -> Service:
    """A shop whose customers turned: decay proven, a candidate trained that waits for a person."""
    service = Service(load(folder / "shelflife.yaml"), folder=folder)
    frame = shop.customers(600, seed=1, start=START - 600 * shop.HOUR / 2)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(frame[["age", "spent"]], frame["bought"])
    version = register(
        "shop", model, reference=frame, target="bought", time="at", id="id", service=service,
        by="test", now=START,
    )  # fmt: skip
    days = 9
    rows = shop.customers(48 * days, seed=5, start=START, turned=True)
    rows["spent"] += 60.0  # drift to look at
    shop.ask(service, version.version, rows, model)
    deploy_all(service, now=START)
    for day in range(3, days + 1):
        found = tick(service, "shop", at=START + day * DAY)
        assert found is not None
        if found.run_id:
            break
    assert found.run_id, found.decision.reason
    at = found.check.at
    for _ in range(20):
        state = advance(service, "shop", at=at, wall=datetime.now(UTC))
        if state is None or state.state != "running":
            break
    assert state is not None
    assert state.state == "waiting", state.outcome
    return service


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path
) -> Iterator[tuple[Service, str]]:
    """The service and the dashboard's address, with everything running."""
    folder = tmp_path_factory.mktemp("installation")
    (folder / "home").mkdir()
    shutil.copy(empty_mlflow, folder / "home" / "mlflow.db")
    (folder / "shelflife.yaml").write_text(SETTINGS % (free(), free()))
    patch = pytest.MonkeyPatch()
    patch.setattr(shop, "NOW", TODAY)  # when rows are received
    service = demo(folder)
    patch.undo()
    _history(folder / "home" / "histories")
    root = str(Path(launch.__file__).resolve().parents[1])
    environment = os.environ | launch.environment(service.settings) | {
        "SHELFLIFE_USER": "dana", "PYTHONPATH": root,
    }  # fmt: skip
    own = [sys.executable, "-m", "shelflife.cli"]
    file = ["--settings", str(folder / "shelflife.yaml")]
    commands = [[*own, "serve", *file], [*own, "watch", *file], launch.command(service.settings)]
    processes = []
    for name, command in zip(("serve", "watch", "dashboard"), commands, strict=True):
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
                )
            )
    try:
        serving = f"http://127.0.0.1:{service.settings.serving.port}"
        _wait(f"{serving}/v2/health/ready", processes[0])
        _wait(f"{launch.address(service.settings)}/_stcore/health", processes[2])
        yield service, launch.address(service.settings)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:  # a busy machine
                process.kill()
                process.wait()
        service.close()


def _history(folder: Path) -> None:
    """A year of a concept that turns half-way, small enough for a backtest of seconds."""
    folder.mkdir()
    first = shop.customers(300, seed=11, start=START - 200 * DAY)
    second = shop.customers(300, seed=12, start=START - 190 * DAY, turned=True)
    pd.concat([first, second]).drop(columns="id").to_parquet(folder / "shop.parquet", index=False)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "a process ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} did not answer within 90 s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM, headless=True, timeout=60_000,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )  # fmt: skip
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 1100})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def version(service: Service) -> str:
    """What the server answers with."""
    url = f"http://127.0.0.1:{service.settings.serving.port}/v2/models/shop"
    found: str = httpx.get(url, trust_env=False).json()["versions"][0]
    return found


def command(service: Service, action: str) -> Any:
    table = schema.commands
    with service.ledger.read() as tx:
        return tx.execute(sa.select(table).where(table.c.action == action)).one()


def confirm(page: Any, button: str, reason: str) -> None:
    """Press a button, say why, confirm; by keyboard alone."""
    page.get_by_role("button", name=button, exact=True).first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Why?").fill(reason)
    page.keyboard.press("Tab")
    for _ in range(4):  # the help's button may stand between
        if page.evaluate("document.activeElement.innerText").strip() == button:
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog.wait_for(state="detached")


def test_from_the_fleet_to_the_column_that_moved(
    page: Any, installation: tuple[Service, str]
) -> None:
    _, address = installation
    page.goto(address)
    page.get_by_text("▲ decaying").first.wait_for()
    page.get_by_role("link", name="shop", exact=True).click()
    page.get_by_role("heading", name="Drift against threshold").wait_for()
    page.get_by_role("link", name="spent", exact=True).first.click()
    page.get_by_role("heading", name="Baseline beside window").wait_for()
    assert "/column?model=shop&name=spent" in page.url
    page.locator("[data-testid=stVegaLiteChart]").first.wait_for()
    page.get_by_text("◐ drifting").first.wait_for()


def test_an_incident_is_acknowledged(page: Any, installation: tuple[Service, str]) -> None:
    service, address = installation
    page.goto(address)
    page.get_by_role("link", name=re.compile(r"^Incident \d")).first.click()
    page.get_by_role("heading", name="Timeline").wait_for()
    confirm(page, "Acknowledge", "I look into it")
    page.get_by_text("acknowledged", exact=True).first.wait_for()
    asked = command(service, "acknowledge")
    assert (asked.by, asked.reason, asked.state) == ("dana", "I look into it", "done")


def test_an_approved_candidate_serves(page: Any, installation: tuple[Service, str]) -> None:
    service, address = installation
    assert version(service) == "1"
    page.goto(f"{address}/compare?model=shop")
    page.get_by_role("heading", name="Where it is better, and where not").wait_for()
    confirm(page, "Approve", "the numbers are clear")
    page.get_by_text("goes on with version 2").wait_for()
    deadline = time.monotonic() + 60
    while version(service) != "2":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    page.goto(f"{address}/model?name=shop")
    page.get_by_text("v2 champion since").wait_for()


def test_a_backtest_is_run_and_taken_over(page: Any, installation: tuple[Service, str]) -> None:
    _, address = installation
    page.goto(f"{address}/backtest")
    page.get_by_role("combobox", name="A history on the server").click()
    page.get_by_role("option", name="shop.parquet").click()
    page.get_by_role("combobox", name="Target: the label").click()
    page.get_by_role("option", name="bought").click()
    page.get_by_role("textbox", name="Span of a window").fill("1d")
    page.get_by_role("button", name="Run the backtest").click()
    page.get_by_role("heading", name="Take it over").wait_for(timeout=180_000)
    assert "/backtest?id=" in page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Use these settings").click()
    assert "retrain:" in Path(download.value.path()).read_text()


def test_no_serious_violation_of_our_own_making(
    page: Any, installation: tuple[Service, str]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    _, address = installation
    pages = (
        "", "model?name=shop", "column?model=shop&name=spent", "compare?model=shop", "runs",
        "incidents?show=all", "serving?model=shop", "backtest",
    )  # fmt: skip
    found = []
    for view in pages:
        page.goto(f"{address}/{view}")
        page.get_by_role("heading").first.wait_for()
        page.wait_for_timeout(800)
        for violation in axe.run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found += [
                    (view, violation["id"], node["html"][:160]) for node in violation["nodes"]
                ]
    ours = [each for each in found if not _streamlits(each)]
    assert ours == []


#: What Streamlit itself makes so, on every page of every app.
_THEIRS: tuple[tuple[str, str], ...] = ()


def _streamlits(found: tuple[str, str, str]) -> bool:
    return any(found[1] == rule and part in found[2] for rule, part in _THEIRS)
