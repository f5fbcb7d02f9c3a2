"""The settings file: every mistake is named with its key, value, line and what was expected."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from core.errors import SettingsError
from core.settings import (
    DashboardSettings,
    GateSettings,
    MlflowSettings,
    ModelSettings,
    QualitySettings,
    ReceiverSettings,
    RetrainSettings,
    SearchSettings,
    Secret,
    ServingSettings,
    Settings,
    load,
    parse,
    secret,
)
from shelflife.template import TEMPLATE


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("home: x\nmodels:\n  churn:\n    windw: 7d\n", 4, ["models.churn.windw", "'window'"]),
        ("defaults:\n  window: 7 days\n", 2, ["defaults.window", "'7 days'", "30m, 12h, 7d"]),
        ("defaults:\n  tolerance: -1\n", 2, ["defaults.tolerance", "-1", "> 0"]),
        ("serving:\n  port: http\n", 2, ["serving.port", "'http'", "int"]),
        ("receivers:\n  - url: http://x\n", 2, ["receivers[0].name", "required"]),
        ("receivers: on-call\n", 1, ["receivers", "a list"]),
        ("models:\n  a/b: {}\n", 2, ["models.a/b", "letters, digits"]),
        ("defaults:\n  retrain:\n    mode: sometimes\n", 3, ["retrain.mode", "'sometimes'"]),
        ("- a\n", None, ["mapping"]),
        ("home: [\n", 2, ["YAML"]),
    ],
)
def test_a_mistake_is_named(text: str, line: int | None, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, file="shelflife.yaml")
    assert caught.value.line == line
    for word in words:
        assert word in str(caught.value)


def test_a_model_starts_from_the_defaults() -> None:
    found = parse(
        "defaults:\n  owner: me\n  retrain: {mode: never, cooldown: 2d}\n"
        "models:\n  a:\n    retrain: {cooldown: 3d}\n  b:\n"
    )
    assert found.model("a").owner == "me"
    assert (found.model("a").retrain.mode, found.model("a").retrain.cooldown) == ("never", "3d")
    assert found.model("b").retrain.cooldown == "2d"
    assert found.model("unheard-of").owner == "me"


def test_the_template_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "shelflife.yaml"
    path.write_text(TEMPLATE)
    found = load(path)
    assert found == Settings(home=str(tmp_path / ".shelflife"))


def test_the_template_shows_every_key_and_is_valid_with_all_of_them() -> None:
    lines = [re.sub(r"^(\s*)# ?", r"\1", line) for line in TEMPLATE.splitlines()[3:]]
    found = parse("\n".join(lines))
    assert found.receivers[0].name == "on-call"
    assert found.models["churn"].retrain.mode == "approve"
    sections = (Settings, MlflowSettings, ServingSettings, DashboardSettings, ReceiverSettings)
    for section in (
        *sections,
        ModelSettings,
        QualitySettings,
        RetrainSettings,
        GateSettings,
        SearchSettings,
    ):
        for field in msgspec.structs.fields(section):
            assert f"{field.name}:" in TEMPLATE, field.name


def test_home_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("home: data\n")
    assert load(tmp_path / "s.yaml").home == str(tmp_path / "data")
    with pytest.raises(SettingsError, match="shelflife init"):
        load(tmp_path / "none.yaml")


def test_secrets_are_named_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    (tmp_path / "key").write_text("from-file\n")
    found, other = secret("env:KEY"), secret(f"file:{tmp_path / 'key'}")
    assert found is not None
    assert other is not None
    assert (found.reveal(), other.reveal()) == ("s3cret", "from-file")
    assert "s3cret" not in f"{found!r} {found}"
    assert secret("") is None
    with pytest.raises(SettingsError, match="MISSING"):
        secret("env:MISSING")
    with pytest.raises(SettingsError) as caught:
        secret("whsec_abc")
    assert "whsec_abc" not in str(caught.value)
    assert isinstance(caught.value.value, Secret)
