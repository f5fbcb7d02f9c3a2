from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import dashboard
from core.ledger import Ledger
from dashboard import charts, history
from dashboard.theme import DARK, LIGHT, palette
from dashboard.views import ModelView, Spark

CONFIG = Path(dashboard.__file__).with_name(".streamlit") / "config.toml"


def drawn(view: ModelView, colours: Any = LIGHT) -> dict[str, Any]:
    chart = charts.metric_chart(
        view.checks, view.promotions, colours, champion=view.row.version, metric=view.row.metric
    )
    found: dict[str, Any] = chart.to_dict()
    return found


def test_the_metric_has_a_point_a_check_and_a_mark_a_version(seed: Any, ledger: Ledger) -> None:
    spec = drawn(history.model_view(ledger, "repurchase", seed.NOW))
    sizes = sorted(len(rows) for rows in spec["datasets"].values())
    assert 181 in sizes
    labels = {row["label"] for rows in spec["datasets"].values() for row in rows if "label" in row}
    assert labels == {"v1", "v2", "v3"}
    text = json.dumps(spec)
    assert LIGHT.champion in text
    assert LIGHT.compared in text
    assert '"utc"' in text


def test_orange_and_red_are_for_states_only(seed: Any, ledger: Ledger) -> None:
    view = history.model_view(ledger, "eta", seed.NOW)
    text = json.dumps(drawn(view)) + json.dumps(charts.drift_chart(view.drift, LIGHT).to_dict())
    for state in ("decaying", "broken_feed"):
        assert LIGHT.states[state] not in text


def test_a_model_without_labels_still_draws_its_states(seed: Any, any_ledger: Ledger) -> None:
    checks = [seed.check("m", "1", seed.NOW - i * seed.DAY, value=None) for i in range(3)]
    seed.write(any_ledger, checks)
    spec = drawn(history.model_view(any_ledger, "m", seed.NOW))
    moods = [r for rows in spec["datasets"].values() for r in rows if "until" in r]
    assert [row["mood"] for row in moods] == ["● healthy"]


def test_a_single_check_draws(seed: Any, any_ledger: Ledger) -> None:
    seed.write(any_ledger, [seed.check("m", "1", seed.NOW, drift={"a": 2.0})])
    view = history.model_view(any_ledger, "m", seed.NOW)
    assert drawn(view)["datasets"]
    assert charts.drift_chart(view.drift, DARK).to_dict()["datasets"]


def test_a_sparkline_holds_numbers_only() -> None:
    picture = charts.sparkline(Spark(values=(0.1, None, 0.2, 0.3), tolerated=0.25), LIGHT)
    assert picture.startswith("<svg ")
    assert picture.count(",") == 3  # a gap is bridged
    assert LIGHT.states["decaying"] in picture  # it ends above its tolerance
    assert charts.sparkline(Spark(values=(None, None), tolerated=0.2), LIGHT) == ""


def test_a_flat_sparkline_draws() -> None:
    picture = charts.sparkline(Spark(values=(0.0, 0.0)), LIGHT)
    assert "nan" not in picture
    assert LIGHT.states["decaying"] not in picture


def test_the_palette_follows_the_theme() -> None:
    assert palette("dark") is DARK
    assert palette("light") is palette(None) is LIGHT


@pytest.mark.parametrize(("mode", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_pages_and_charts_have_the_same_colours(mode: str, colours: Any) -> None:
    theme = tomllib.loads(CONFIG.read_text())["theme"][mode]
    assert theme["primaryColor"] == colours.champion
    names = {
        "green": "healthy",
        "blue": "drifting",
        "orange": "decaying",
        "red": "broken_feed",
        "violet": "stale",
    }
    for name, state in names.items():
        assert theme[f"{name}Color"] == colours.states[state]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.1, 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_words_in_a_badge_are_readable(mode: str) -> None:
    theme = tomllib.loads(CONFIG.read_text())["theme"][mode]
    for name in ("green", "blue", "orange", "red", "violet", "gray"):
        on_badge = contrast(theme[f"{name}TextColor"], theme[f"{name}BackgroundColor"])
        on_page = contrast(theme[f"{name}TextColor"], theme["backgroundColor"])
        assert min(on_badge, on_page) >= 4.5, name
    for name in ("textColor", "linkColor", "primaryColor"):
        assert contrast(theme[name], theme["backgroundColor"]) >= 4.5, name


def test_a_wide_first_interval_does_not_flatten_the_rest(seed: Any, any_ledger: Ledger) -> None:
    checks = [seed.check("m", "1", seed.NOW - i * seed.DAY, value=0.17) for i in range(5)]
    checks.append(seed.check("m", "1", seed.NOW - 5 * seed.DAY, value=0.18, half=0.9, n=20))
    seed.write(any_ledger, checks)
    spec = drawn(history.model_view(any_ledger, "m", seed.NOW))
    scales = [layer.get("encoding", {}).get("y", {}).get("scale") for layer in spec["layer"]]
    given = [scale for scale in scales if scale]
    assert given
    for scale in given:
        low, high = scale["domain"]
        assert 0.15 < low < 0.17
        assert 0.19 < high < 0.21
        assert scale["zero"] is False  # an area's axis would begin there otherwise
