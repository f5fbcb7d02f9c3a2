"""The API behind its gatekeeper: real requests to a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa
import uvicorn

from core import access, schema, tokens
from core.errors import SettingsError
from core.settings import AccessSettings, Settings
from shelflife import server
from shelflife.service import Service

NOW = datetime.now(UTC)
SECRET = "proxy-secret-of-enough-length"
RULES = AccessSettings(
    enabled=True,
    viewers=("vera@example.org",),
    operators=("group:on-call",),
    admins=("ada@example.org",),
    proxy_user="X-Forwarded-Email",
    proxy_groups="X-Forwarded-Groups",
    proxy_secret="env:PROXY_SECRET",
)
ACT = "/api/v1/models/shop/actions/"
Call = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    service = Service(Settings(home=str(home), access=RULES))
    with service.ledger.write() as tx:
        tx.execute(
            schema.promotions.insert().values(
                model="shop", version="1", kind="first", at=NOW, by="ops", sha256="0" * 64
            )
        )
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXY_SECRET", SECRET)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = uvicorn.Config(
            server.build(service), **server.options(service.settings) | {"port": port}
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
        running.should_exit = True
        thread.join()


def bearer(service: Service, *scopes: Any, **options: Any) -> dict[str, str]:
    token, _ = tokens.create(service.ledger, "robot", scopes, by="ops", now=NOW, **options)
    return {"Authorization": f"Bearer {token}"}


def proxied(name: str, groups: str = "", secret: str = SECRET) -> dict[str, str]:
    return {
        "X-Forwarded-Email": name, "X-Forwarded-Groups": groups, "X-Shelflife-Proxy": secret,
    }  # fmt: skip


def asked(service: Service) -> list[Any]:
    with service.ledger.read() as tx:
        return tx.execute(sa.select(schema.commands).order_by(schema.commands.c.id)).all()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/models"),
        ("GET", "/api/v1/models/shop"),
        ("GET", "/api/v1/runs"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/v2"),
        ("POST", "/v2/models/shop/infer"),
        ("POST", "/api/v1/models/shop/labels"),
        ("POST", ACT + "check"),
        ("GET", "/nowhere"),
    ],
)
def test_strangers_see_nothing(
    client: httpx.Client, service: Service, method: str, path: str
) -> None:
    before = len(asked(service))
    for headers in (
        {},
        {"Authorization": "Bearer slt_000000000000_" + "x" * 43},
        {"Authorization": "Basic YTpi"},
        proxied("ada@example.org", secret="wrong"),
        {"X-Forwarded-Email": "ada@example.org"},
        proxied("nobody@example.org", "sales"),
        {"X-Shelflife-Assertion": "e30=.0000"},
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert "shop" not in answer.text
    assert len(asked(service)) == before


def test_probes_need_no_one(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/v2/health/live").status_code == 200


def test_a_token_does_what_its_scopes_say(client: httpx.Client, service: Service) -> None:
    reads = bearer(service, "read")
    assert client.get("/api/v1/models", headers=reads).status_code == 200
    answer = client.post(ACT + "check", headers=reads, json={"reason": "why not"})
    assert answer.status_code == 403
    assert "operate" in answer.json()["error"]
    feeds = bearer(service, "ingest")
    assert client.get("/api/v1/models", headers=feeds).status_code == 403
    # Let through to the route, which knows no such model's spec.
    labels = {"labels": []}
    got = client.post("/api/v1/models/shop/labels", headers=feeds, json=labels)
    assert got.status_code not in (401, 403)
    operates = bearer(service, "operate")
    assert client.get("/api/v1/models", headers=operates).status_code == 200
    promote = {"arguments": {"version": "1"}, "reason": "I know better"}
    assert client.post(ACT + "promote", headers=operates, json=promote).status_code == 403
    admin = bearer(service, "admin")
    assert client.post(ACT + "promote", headers=admin, json=promote).status_code == 202


def test_an_action_names_the_person_and_wants_a_reason(
    client: httpx.Client, service: Service
) -> None:
    headers = proxied("bert@example.org", "sales, on-call")
    answer = client.post(ACT + "check", headers=headers, json={"by": "somebody else"})
    assert answer.status_code == 400
    assert answer.json()["field"] == "reason"
    body = {"by": "somebody else", "reason": "looks odd"}
    assert client.post(ACT + "check", headers=headers, json=body).status_code == 202
    last = asked(service)[-1]
    assert (last.by, last.reason, last.action) == ("bert@example.org", "looks odd", "check")
    viewer = proxied("vera@example.org")
    assert client.post(ACT + "check", headers=viewer, json=body).status_code == 403
    report = {"reason": "for the audit", "arguments": {"subject": "check:1"}}
    assert client.post(ACT + "report", headers=viewer, json=report).status_code == 202


def _assertion(service: Service, body: bytes, *, path: str = ACT + "retrain") -> dict[str, str]:
    word = access.asserted(
        tokens.shared_key(service.home), name="bert@example.org", groups=["on-call"], how="oidc",
        method="POST", path=path, body=body, at=time.time(),
    )  # fmt: skip
    return {"X-Shelflife-Assertion": word}


def test_the_dashboards_word_counts_once_and_for_its_body(
    client: httpx.Client, service: Service
) -> None:
    body = msgspec.json.encode({"reason": "the labels are in", "by": "x"})
    headers = _assertion(service, body)
    assert client.post(ACT + "retrain", headers=headers, content=body).status_code == 202
    assert client.post(ACT + "retrain", headers=headers, content=body).status_code == 401
    other = msgspec.json.encode({"reason": "something else"})
    headers = _assertion(service, body)
    assert client.post(ACT + "retrain", headers=headers, content=other).status_code == 400
    headers = _assertion(service, body, path=ACT + "check")
    assert client.post(ACT + "retrain", headers=headers, content=body).status_code == 401
    assert asked(service)[-1].by == "bert@example.org"


def test_a_revoked_token_ends_within_seconds(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = bearer(service, "read")
    assert client.get("/api/v1/runs", headers=headers).status_code == 200
    identity = access.token_id(headers["Authorization"].removeprefix("Bearer "))
    tokens.revoke(service.ledger, str(identity), now=NOW)
    assert client.get("/api/v1/runs", headers=headers).status_code == 200  # still remembered
    monkeypatch.setattr("shelflife.web.gatekeeper._BELIEVED", 0.0)
    assert client.get("/api/v1/runs", headers=headers).status_code == 401


def test_an_expired_token_is_a_strangers(client: httpx.Client, service: Service) -> None:
    headers = bearer(service, "read", expires=NOW - timedelta(seconds=1))
    assert client.get("/api/v1/runs", headers=headers).status_code == 401


def test_a_rate_is_a_limit_with_a_way_back(client: httpx.Client, service: Service) -> None:
    headers = bearer(service, "read", per_minute=12)
    got = [client.get("/api/v1/runs", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in got] == [200, 200, 429, 429]
    assert int(got[-1].headers["Retry-After"]) >= 1
    assert client.get("/api/v1/runs", headers=bearer(service, "read")).status_code == 200


def test_using_a_token_is_noted(client: httpx.Client, service: Service) -> None:
    headers = bearer(service, "read")
    client.get("/api/v1/runs", headers=headers)
    identity = str(access.token_id(headers["Authorization"].removeprefix("Bearer ")))
    deadline = time.monotonic() + 10
    while tokens.get(service.ledger, identity).used is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("secret", ["", "env:SHORT", "env:NOT_SET_ANYWHERE"])
def test_a_proxy_must_prove_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("SHORT", "x")
    rules = AccessSettings(enabled=True, proxy_user="X-User", proxy_secret=secret)
    service = Service(Settings(home=str(tmp_path), access=rules))
    with pytest.raises(SettingsError):
        server.build(service)
    service.close()


def test_without_authentication_other_sites_cannot_act(tmp_path: Path, service: Service) -> None:
    from starlette.datastructures import Headers

    from shelflife.web.gatekeeper import cross_site

    host = {"host": "127.0.0.1:8080"}
    assert not cross_site(Headers(host))
    assert not cross_site(Headers(host | {"origin": "http://127.0.0.1:8080"}))
    assert cross_site(Headers(host | {"origin": "https://evil.example"}))
    assert cross_site(Headers(host | {"sec-fetch-site": "cross-site"}))
