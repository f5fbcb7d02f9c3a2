"""Real screenshots of the dashboard's pages, from the ledger that `make demo EXIT=1` left behind.

Needs Debian's Chromium. Run by `make screenshots`; writes docs/images/*.png. Another demo's folder
may be given as the argument.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
from playwright.sync_api import sync_playwright

from core.settings import load
from dashboard import launch

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
#: Address and height in pixels of each page: Streamlit scrolls inside the page, so that a
#: screenshot of the whole page would be one of the first screen.
PAGES = {
    "fleet": ("/", 420),
    "model": ("/model?name=repurchase&range=all", 1700),
    "column": ("/column?model=repurchase&name=lifetime_value", 1300),
    "compare": ("/compare?model=repurchase", 1500),
    "runs": ("/runs", 600),
    "incidents": ("/incidents?show=all", 700),
    "incident": ("/incidents?id=2", 950),
    "serving": ("/serving?model=repurchase&span=1d", 1200),
    "backtest": ("/backtest", 500),
}
#: Beside the wide, light one of each page: what the same pages look like elsewhere.
ALSO = {
    "fleet-dark": ("fleet", 1280, "dark"),
    "model-dark": ("model", 1280, "dark"),
    "fleet-narrow": ("fleet", 420, "light"),
    "model-narrow": ("model", 420, "light"),
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> int:
    """Take them all; returns the exit status."""
    demo = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".demo"
    chromium, settings = shutil.which("chromium"), demo / "shelflife.yaml"
    if chromium is None or not settings.is_file():
        sys.stderr.write("needs chromium and a demo: make demo EXIT=1\n")
        return 1
    found = load(settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages = msgspec.structs.replace(found.dashboard, port=port)
    found = msgspec.structs.replace(found, dashboard=pages)
    environment = launch.environment(found, mlflow_ui="http://127.0.0.1:5000", replay=True)
    process = subprocess.Popen(launch.command(found), env={**_kept(), **environment})
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health")
        _take(chromium, launch.address(found))
    finally:
        process.terminate()
        process.wait()
    return 0


def _kept() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def _wait(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the dashboard did not start")


def _take(chromium: str, address: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS)
        shots = {name: (name, 1280, "light") for name in PAGES} | ALSO
        for name, (view, width, scheme) in shots.items():
            path, height = PAGES[view]
            tall = height if width > 600 else 1800
            size = {"width": width, "height": tall}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(address + path)
            page.wait_for_selector("[data-testid=stHeading]", timeout=60_000)
            page.wait_for_timeout(2500)  # charts draw after the text
            page.screenshot(path=str(IMAGES / f"{name}.png"))
            page.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
