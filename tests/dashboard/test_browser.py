"""The dashboard in a real browser: what a person sees, and where a click leads."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import DashboardSettings, Settings
from dashboard import launch

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def address(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over the seeded ledger, started as the supervisor starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(home=str(home), dashboard=DashboardSettings(port=port))
    environment = os.environ | launch.environment(settings, replay=True)
    log = (tmp_path_factory.mktemp("dashboard") / "log").open("wb")
    process = subprocess.Popen(
        launch.command(settings), env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        _wait(f"{launch.address(settings)}/_stcore/health", process)
        yield launch.address(settings)
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "streamlit ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("streamlit did not answer within 60 s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(FLAGS), timeout=60_000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab that notes every dialog, script error and request to another host."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(30_000)
    tab = context.new_page()
    tab.problems = []
    tab.on("dialog", lambda dialog: (tab.problems.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda request: tab.problems.extend(_foreign(request.url)))
    yield tab
    context.close()
    assert tab.problems == []


def _foreign(url: str) -> list[str]:
    return (
        [] if url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")) else [url]
    )


def test_from_the_fleet_to_the_worst_model_and_its_incident(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_text("Which model needs you?").wait_for()
    page.get_by_text("▲ decaying").first.wait_for()
    page.get_by_text("as of 12 Oct 2026, 14:04 UTC").wait_for()
    page.get_by_role("link", name="repurchase", exact=True).click()
    page.get_by_text("v3 champion since 1 Sep (41 d)").wait_for()
    assert page.url.endswith("/model?name=repurchase")
    page.get_by_text("Brier score over time").wait_for()
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").nth(
        1
    ).wait_for()
    page.get_by_role("link", name="Incident 42").first.click()
    page.get_by_text("Who was told").wait_for()
    assert page.url.endswith("/incidents?id=42")


def test_an_address_opens_its_view(page: Any, address: str) -> None:
    page.goto(f"{address}/model?name=repurchase&range=30d")
    page.get_by_text("Brier score over time").wait_for()
    page.get_by_role("radio", name="30 days", checked=True).wait_for()
    page.goto(f"{address}/runs?id=8f3c1d2e")
    page.get_by_role("heading", name="Run 8f3c1d2e").wait_for()


def test_a_choice_is_kept_in_the_address(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_text("1 healthy").click()
    page.get_by_role("link", name="repurchase", exact=True).wait_for(state="detached")
    page.get_by_role("link", name="fraud", exact=True).wait_for()
    assert page.url.endswith("?state=healthy")


def test_hostile_names_are_only_text(page: Any, address: str) -> None:
    for view in ("", "model?name=evil", "incidents?id=66", "runs?id=%3Cb%3Erun%3C%2Fb%3E"):
        page.goto(f"{address}/{view}")
        page.get_by_text("<img onerror=alert(1)>").first.wait_for()
        assert page.locator("img[onerror]").count() == 0
        assert page.locator("a[href^='javascript']").count() == 0


def test_a_narrow_screen_does_not_scroll_sideways(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    for view in ("", "model?name=repurchase", "incidents?id=42", "runs?id=2a91bb07"):
        page.goto(f"{address}/{view}")
        page.get_by_role("heading").first.wait_for()
        page.wait_for_timeout(500)
        wide = page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
        assert wide <= 420
