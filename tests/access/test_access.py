"""Roles, scopes, tokens and the dashboard's word for a person."""

from __future__ import annotations

import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core import access, schema, tokens
from core.access import HELD, NEEDED, Identity, allows, needed, person, role_of
from core.errors import InputError, NotFound
from core.ledger import Ledger
from core.settings import AccessSettings
from shelflife.commands import ACTIONS
from shelflife.tokens_command import ROLES, SCOPES
from shelflife.web.gatekeeper import Buckets, scope_of

NOW = datetime(2026, 10, 12, 14, tzinfo=UTC)
WHO = AccessSettings(
    enabled=True,
    viewers=("*",),
    operators=("Anna@Example.org", "group:on-call"),
    admins=("group:ml-admins",),
)


@pytest.mark.parametrize(
    ("name", "groups", "role"),
    [
        ("anna@example.org", [], "operator"),
        ("ANNA@example.org", [], "operator"),
        ("bert@example.org", ["On-Call"], "operator"),
        ("bert@example.org", ["on-call", "ml-admins"], "admin"),
        ("bert@example.org", ["ml"], "viewer"),
    ],
)
def test_roles(name: str, groups: list[str], role: str) -> None:
    assert role_of(WHO, name, groups) == role


def test_nobody_can_call_themselves_a_group() -> None:
    found = person(WHO, "group:ml-admins", [], "oidc")
    assert found is None


def test_a_star_lets_people_look_and_never_act() -> None:
    settings = AccessSettings(enabled=True, admins=("*",), operators=("*",))
    assert role_of(settings, "anyone", []) is None


def test_without_members_nobody_has_a_role() -> None:
    assert person(AccessSettings(enabled=True), "anna", ["admins"], "oidc") is None
    assert person(WHO, "", ["ml-admins"], "proxy") is None


def test_every_action_has_a_scope_and_unknown_ones_the_highest() -> None:
    assert set(ACTIONS) <= set(NEEDED)
    assert needed("format-disk") == "admin"
    assert not allows(None, "read")
    viewer = Identity(name="v", scopes=HELD["viewer"], how="token")
    assert [a for a in ACTIONS if allows(viewer, needed(a))] == ["report"]


def test_the_command_line_knows_the_same_scopes() -> None:
    assert SCOPES == access.SCOPES
    assert {role: HELD[role][-1] for role in access.ROLES} == ROLES


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/healthz", None),
        ("GET", "/v2/health/ready", None),
        ("POST", "/healthz", "admin"),
        ("POST", "/v2/models/shop/infer", "infer"),
        ("GET", "/v2/models/shop", "infer"),
        ("POST", "/v2/repository/models/shop/unload", "admin"),
        ("POST", "/api/v1/models/shop/labels", "ingest"),
        ("POST", "/api/v1/cloudevents", "ingest"),
        ("POST", "/api/v1/models/shop/actions/check", "operate"),
        ("POST", "/api/v1/models/shop/actions/promote", "admin"),
        ("POST", "/api/v1/models/shop/actions/", "admin"),
        ("POST", "/api/v1/models/shop/actions/check/predictions", "ingest"),  # no such route
        ("GET", "/api/v1/runs", "read"),
        ("POST", "/api/v1/models/shop/predict", "infer"),
        ("POST", "/api/v1/hints/mlflow", None),
        ("POST", "/api/v1/silences", "operate"),
        ("POST", "/api/v1/incidents/1/silence", "operate"),
        ("GET", "/runbooks/decay", None),
        ("DELETE", "/api/v1/runs", "admin"),
        ("GET", "/metrics", "read"),
        ("GET", "/", "admin"),
        ("GET", "//healthz", "admin"),
    ],
)
def test_what_each_route_asks_for(method: str, path: str, scope: str | None) -> None:
    assert scope_of(method, path) == scope


def test_a_token_is_recognised_until_it_is_revoked_or_expires(any_ledger: Ledger) -> None:
    secret, made = tokens.create(
        any_ledger, "feed", ["ingest"], by="ops", now=NOW, expires=NOW + timedelta(days=1)
    )
    found = tokens.recognise(any_ledger, secret, now=NOW)
    assert found is not None
    assert (found.name, found.scopes, found.role) == ("feed", ("ingest",), None)
    assert tokens.recognise(any_ledger, secret, now=NOW + timedelta(days=1)) is None
    other = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for wrong in (other, "", "slt_", f"slt_{made.id}_", f"slt_{made.id}_" + "x" * 43, "x" * 500):
        assert tokens.recognise(any_ledger, wrong, now=NOW) is None
    tokens.revoke(any_ledger, made.id, now=NOW)
    tokens.revoke(any_ledger, made.id, now=NOW + timedelta(hours=1))
    assert tokens.get(any_ledger, made.id).revoked == NOW
    assert tokens.recognise(any_ledger, secret, now=NOW) is None
    with pytest.raises(NotFound, match="tokens list"):
        tokens.revoke(any_ledger, "nobody", now=NOW)


def test_only_the_hash_is_stored(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").create()
    secret, _ = tokens.create(ledger, "feed", ["admin"], by="ops", now=NOW)
    ledger.close()
    part = secret.split("_", 2)[2].encode()
    for path in tmp_path.iterdir():
        assert part not in path.read_bytes()


@pytest.mark.parametrize(
    "wrong", [{"name": " "}, {"scopes": []}, {"scopes": ["root"]}, {"per_minute": 0}]
)
def test_a_token_that_makes_no_sense(any_ledger: Ledger, wrong: dict[str, object]) -> None:
    given = {"name": "feed", "scopes": ["read"], "by": "ops", "now": NOW} | wrong
    with pytest.raises(InputError):
        tokens.create(any_ledger, given.pop("name"), given.pop("scopes"), **given)  # type: ignore[arg-type]
    with any_ledger.read() as tx:
        assert not tx.execute(schema.tokens.select()).all()


def test_higher_scopes_hold_the_lower() -> None:
    assert access.scopes_of("admin infer") == ("read", "operate", "admin", "infer")
    assert access.scopes_of("future") == ()


def _word(key: bytes, at: float = 1000.0, path: str = "/a", body: bytes = b"{}") -> str:
    return access.asserted(
        key, name="anna", groups=["ops"], how="oidc", method="POST", path=path, body=body, at=at
    )


def test_the_dashboards_word_is_good_for_one_request_and_a_minute() -> None:
    key = os.urandom(32)
    good = _word(key)
    said = access.believed(key, good, method="POST", path="/a", now=1010.0)
    assert said is not None
    assert (said.name, said.groups) == ("anna", ("ops",))
    for text, method, path, now in (
        (good, "POST", "/b", 1010.0),
        (good, "GET", "/a", 1010.0),
        (good, "POST", "/a", 1061.0),
        (good, "POST", "/a", 990.0),
        (_word(os.urandom(32)), "POST", "/a", 1010.0),
        (good[:-1], "POST", "/a", 1010.0),
        ("", "POST", "/a", 1010.0),
        ("é.ü", "POST", "/a", 1010.0),
    ):
        assert access.believed(key, text, method=method, path=path, now=now) is None


def test_the_shared_key_is_made_once_and_private(tmp_path: Path) -> None:
    found: list[bytes] = []
    makers = [
        threading.Thread(target=lambda: found.append(tokens.shared_key(tmp_path))) for _ in range(8)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(set(found)) == 1
    assert len(found[0]) == 32
    [path] = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_bucket_refills_steadily() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    assert [buckets.take("a", 60) for _ in range(10)] == [0.0] * 10
    assert buckets.take("a", 60) == pytest.approx(1.0)
    assert buckets.take("b", 60) == 0.0
    now[0] = 1.0
    assert buckets.take("a", 60) == 0.0
    assert buckets.take("a", 60) == pytest.approx(1.0)
