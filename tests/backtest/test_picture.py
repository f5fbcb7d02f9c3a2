"""The table, the sentences and the picture, from a small made-up result."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shelflife.backtest.axes import Axis, Scale, days, ticks
from shelflife.backtest.face import Backtest
from shelflife.backtest.results import Facts, PolicyResult, Summary, WindowResult

EVIL = '<img src=x onerror="alert(1)">'


def made(name: str, losses: list[float | None], fits: tuple[int, ...] = ()) -> PolicyResult:
    windows = tuple(
        WindowResult(
            start=f"2026-01-{i + 1:02}T00:00:00Z", end=f"2026-01-{i + 2:02}T00:00:00Z", rows=100,
            labelled=100 if loss is not None else 0, version="1", loss=loss, metric="brier",
            verdict="healthy", alarm=i in fits, decision="retrain" if i in fits else "wait",
            reason=f"because {EVIL}", fit=3 if i in fits else 0, probe=0, promoted=i in fits,
            rejected=False, rolled_back=False, known=100, page=f"page {EVIL}" if i in fits else "",
            outcome="",
        )
        for i, loss in enumerate(losses)
    )  # fmt: skip
    known = [loss for loss in losses if loss is not None]
    mean, gains = sum(known) / len(known), {"never": 0.0, "default": 0.25}
    summary = Summary(
        mean_loss=mean, metric="brier", fits=3 * len(fits), promotions=len(fits), rejected=0,
        alarms=len(fits), rollbacks=0, probe_fits=0, cost=mean * len(losses) + 0.06 * len(fits),
        gain_vs_never=gains.get(name, 0.3), regret_vs_every=0.1,
    )  # fmt: skip
    return PolicyResult(summary=summary, windows=windows)


@pytest.fixture
def found() -> Backtest:
    facts = Facts(
        rows=1000, train_rows=400, windows=6, features=("a", EVIL), task="binary", target=EVIL,
        metric="brier", expected_loss=0.1, cost_of_fit=0.2, labels_known="at once",
        estimator="Any", seed=0, since="2026-01-01T00:00:00Z", until="2026-01-07T00:00:00Z",
        settings={"window": "1d", "retrain": {"policy": "default", "cooldown": "1d"}},
        notes=(f"left out: {EVIL}",),
    )  # fmt: skip
    never = made("never", [0.2, 0.2, 0.3, 0.3, None, 0.3])
    every = made("every:1", [0.2] * 6, (0, 1, 2, 3, 4, 5))
    policies = {"default": made("default", [0.2, 0.2, 0.2, 0.18, None, 0.18], (2,))}
    return Backtest(policies, {"never": never, "every:1": every}, facts)


class _Parsed(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_escapes_names(found: Backtest) -> None:
    text = found.to_html()
    tags = _Parsed(text).tags
    assert not {"img", "script", "link", "iframe"} & {tag for tag, _ in tags}
    assert not re.search(r"(?:src|href|url)\s*[=(]", text.replace("&lt;img src=x", ""))
    assert "&lt;img src=x onerror=&quot;" in text
    assert EVIL not in text


def test_the_picture_shows_what_happened(found: Backtest) -> None:
    text = found.to_html()
    assert text.count('fill="#C8102E"') == 7  # pages: one of default, six of every:1
    assert text.count("l6.5 12 h-13 z") == 7  # promotions
    assert len(re.findall(r'class="hit"', text)) == 6
    assert "nan" not in text.lower().replace("finance", "")
    assert "<h1>" in found._repr_html_()


def test_the_words_say_what_matters(found: Backtest) -> None:
    text = str(found)
    assert "`default` would have retrained once (1 promoted, 0 refused)" in text
    assert "saved 25.0 % of the loss of never retraining" in text
    assert "17 % of the fits of retraining in every window" in text
    assert "1 page: 2026-01-04" in text
    assert "Take over `default`" in text
    assert "      retrain:\n          policy: default" in text
    assert f"note: left out: {EVIL}" in text
    first = next(line for line in text.splitlines() if line.startswith("default"))
    assert first.split()[1:3] == ["0.1920", "−25.0"]


def test_to_frame_has_a_row_per_policy_and_window(found: Backtest) -> None:
    frame = found.to_frame()
    assert len(frame) == 18
    assert frame.groupby("policy")["fit"].sum().to_dict() == {
        "default": 3, "never": 0, "every:1": 18,
    }  # fmt: skip


def test_axes_have_round_numbers() -> None:
    axis = Axis.around([0.181, 0.236], 100, 0)
    assert [text for _, text in axis.ticks()] == ["0.18", "0.20", "0.22", "0.24"]
    assert axis.scale.at(0.18) == 100
    flat = Axis.around([0.0, 0.0], 100, 0).ticks()
    assert len(flat) >= 3
    spans = {
        ("2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z"): ":",
        ("2026-01-01T00:00:00Z", "2026-01-09T00:00:00Z"): "Jan 2026",
        ("2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z"): "2026",
        ("1990-01-01T00:00:00Z", "2026-01-01T00:00:00Z"): "1995",
    }
    for (first, last), part in spans.items():
        found = ticks(Scale(days(first), days(last), 0, 100))
        assert 3 <= len(found) <= 10
        assert any(part in text for _, text in found)


def test_saving_names_the_path(found: Backtest, tmp_path: Path) -> None:
    path = found.save_html(tmp_path / "new" / "b.html")
    assert path.read_text(encoding="utf-8") == found.to_html()
