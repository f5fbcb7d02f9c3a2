"""Who sees what, and who may do what, on every page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from streamlit.testing.v1 import AppTest

from core import access, schema, tokens
from core.ledger import Ledger
from core.settings import AccessSettings
from dashboard import people
from dashboard.routes import _TITLES

NOW = datetime.now(UTC)
RULES = AccessSettings(
    enabled=True, viewers=("vera@example.org",), operators=("group:on-call",), oidc=True
)
ADDRESSES: dict[str, dict[str, str]] = {
    "fleet": {},
    "model": {"name": "repurchase"},
    "column": {"model": "repurchase", "name": "lifetime_value"},
    "compare": {"run": "ab12cd34"},
    "runs": {"id": "ab12cd34"},
    "incidents": {"id": "42"},
    "serving": {"model": "repurchase"},
    "backtest": {},
}


@pytest.fixture
def guarded(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFLIFE_ACCESS", msgspec.json.encode(RULES).decode())


def opened(page: str, token: str = "", **parameters: str) -> AppTest:
    import dashboard

    app = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=30)
    if token:
        app.session_state["shelflife_token"] = token
    if page != "fleet":
        app.run()
        app.switch_page(f"page_{page}.py")
    for name, value in parameters.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def made(home: Path, *scopes: Any) -> str:
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}").create()
    token, _ = tokens.create(ledger, "anna", scopes, by="ops", now=NOW)
    ledger.close()
    return token


def said(app: AppTest) -> str:
    return "\n".join(str(getattr(e, "value", "")) for k in _KINDS for e in app.get(k))


_KINDS = ("header", "subheader", "markdown", "caption", "info", "warning", "error", "code")


def test_every_page_is_tried() -> None:
    assert set(ADDRESSES) == set(_TITLES)


def every_page(token: str = "") -> Iterator[tuple[str, AppTest]]:
    """Each page in one tab: a first run costs as much as the page itself."""
    app = opened("fleet", token=token)
    yield "fleet", app
    for page, parameters in ADDRESSES.items():
        if page != "fleet":
            app.switch_page(f"page_{page}.py")
            app.query_params.clear()
            for name, value in parameters.items():
                app.query_params[name] = value
            app.run()
            assert not app.exception, app.exception
            yield page, app


@pytest.mark.usefixtures("guarded")
def test_strangers_see_nothing() -> None:
    for page, app in every_page():
        text = said(app)
        assert "Who are you?" in text, page
        assert "repurchase" not in text, page
        assert [button.label for button in app.button] == ["Sign in", "Enter"]


@pytest.mark.usefixtures("guarded")
def test_a_wrong_token_is_told_so(home: Path) -> None:
    app = opened("fleet", token="slt_000000000000_" + "x" * 43)
    assert "This token is not known" in said(app)
    assert "repurchase" not in said(app)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(("scope", "role"), [("read", "viewer"), ("operate", "operator")])
def test_each_role_on_each_page(home: Path, scope: str, role: str) -> None:
    for page, app in every_page(made(home, scope)):
        text = said(app)
        assert "Who are you?" not in text, page
        acts = [button for button in app.button if button.label in _ACTS]
        assert {button.label for button in acts} == _BUTTONS.get(page, set()), page
        assert all(button.disabled == (role == "viewer") for button in acts), page
        if page == "backtest":
            assert ("needs the role operator" in text) == (role == "viewer")


_ACTS = {"Check now", "Retrain", "Roll back", "Approve", "Reject", "Acknowledge", "Give up"}
_BUTTONS = {
    "model": {"Check now", "Retrain", "Roll back"},
    "compare": {"Approve", "Reject"},
    "runs": {"Approve", "Reject"},
    "incidents": {"Acknowledge"},
}


@pytest.mark.usefixtures("guarded")
def test_a_program_that_only_feeds_sees_nothing(home: Path) -> None:
    assert "Who are you?" in said(opened("fleet", token=made(home, "ingest")))


@pytest.mark.usefixtures("environment")
def test_settings_that_cannot_be_read_let_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFLIFE_ACCESS", "{")
    text = said(opened("fleet"))
    assert "repurchase" not in text
    assert "ledger.db" not in text


@pytest.mark.usefixtures("guarded")
def test_a_broken_ledger_tells_strangers_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHELFLIFE_LEDGER", f"sqlite:///{tmp_path}/secret-place/ledger.db")
    assert "secret-place" not in said(opened("fleet"))


class _User(dict[str, Any]):
    def to_dict(self) -> dict[str, Any]:
        return dict(self)


def _signed_in(monkeypatch: pytest.MonkeyPatch, **claims: Any) -> None:
    monkeypatch.setattr(people.st, "user", _User(is_logged_in=True, **claims))


@pytest.mark.parametrize(
    ("claims", "name", "groups"),
    [
        ({"email": "a@b.c", "groups": ["x"]}, "a@b.c", ["x"]),
        ({"email": "a@b.c", "email_verified": True, "groups": "x"}, "a@b.c", ["x"]),
        ({"email": "a@b.c", "email_verified": False, "groups": ["x"]}, "", []),
        ({"sub": "123"}, "123", []),
        ({}, "", []),
    ],
)
def test_what_an_identity_token_says(
    monkeypatch: pytest.MonkeyPatch, claims: dict[str, Any], name: str, groups: list[str]
) -> None:
    _signed_in(monkeypatch, **claims)
    assert people.signed_in(RULES) == (name, groups)


@pytest.mark.usefixtures("guarded")
def test_open_id_groups_become_roles(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    _signed_in(monkeypatch, email="bert@example.org", groups=["on-call"])
    found = people.reader(ledger)
    assert found.identity is not None
    assert (found.identity.role, found.may("retrain"), found.may("promote")) == (
        "operator", True, False,
    )  # fmt: skip
    _signed_in(monkeypatch, email="mallory@example.org", groups=["sales"])
    found = people.reader(ledger)
    assert (found.identity, found.name) == (None, "mallory@example.org")


@pytest.mark.usefixtures("environment")
def test_a_proxy_names_people_only_with_its_secret(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = AccessSettings(
        enabled=True, admins=("ada",), proxy_user="X-User", proxy_secret="env:PROXY_SECRET"
    )
    monkeypatch.setenv("SHELFLIFE_ACCESS", msgspec.json.encode(rules).decode())
    monkeypatch.setenv("PROXY_SECRET", "a-secret-of-some-length")

    class Context:
        headers: ClassVar = {"X-User": "ada", "X-Shelflife-Proxy": "a-secret-of-some-length"}

    monkeypatch.setattr(people.st, "context", Context)
    found = people.reader(ledger)
    assert found.identity is not None
    assert found.identity.role == "admin"
    Context.headers = {"X-User": "ada", "X-Shelflife-Proxy": "a guess"}
    assert people.reader(ledger).identity is None
    Context.headers = {"X-User": "ada"}
    assert people.reader(ledger).identity is None


class Api:
    """A stand-in for the API that keeps what it was asked."""

    def __init__(self, ledger: Ledger) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.status, api = 202, self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.seen.append((self.path, dict(self.headers), body))
                answer: dict[str, Any] = {"error": "a run is unfinished"}
                if api.status == 202:
                    with ledger.write() as tx:
                        added = tx.execute(
                            schema.commands.insert().values(
                                model="repurchase", action="retrain", by="x", requested=NOW,
                                state="done", result="run 77 started", finished=NOW,
                            )
                        )  # fmt: skip
                    answer = {"command": added.inserted_primary_key[0], "state": "asked"}
                raw = json.dumps(answer).encode()
                self.send_response(api.status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def api(environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    ledger = Ledger(f"sqlite:///{environment / 'ledger.db'}")
    api = Api(ledger)
    monkeypatch.setenv("SHELFLIFE_API", api.address)
    yield api
    api.server.shutdown()
    api.server.server_close()
    ledger.close()


def dialog() -> None:
    """A page whose dialog is always open: the test runner does not rerun fragments alone."""
    from dashboard import acting
    from dashboard.source import Desk, read_environment

    desk = Desk(read_environment())
    acting.news(desk)
    acting._confirm(desk, acting.ACTIONS["retrain"], "repurchase", "", {})


def _ask(reason: str, token: str = "") -> AppTest:
    app = AppTest.from_function(dialog, default_timeout=30)
    if token:
        app.session_state["shelflife_token"] = token
    app.run()
    app.text_area[0].set_value(reason)
    next(button for button in app.button if button.label == "Retrain").click().run()
    assert not app.exception, app.exception
    return app


def test_a_button_opens_the_dialog(environment: Path) -> None:
    app = opened("model", name="repurchase")
    next(button for button in app.button if button.label == "Retrain").click().run()
    assert "The gate still decides" in said(app)
    assert len(app.text_area) == 1


def test_an_action_is_asked_of_the_api_with_name_and_reason(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELFLIFE_USER", "dana")
    assert "Say why" in said(_ask("  "))
    assert not api.seen
    app = _ask("the labels of May are in")
    [(path, headers, body)] = api.seen
    assert path == "/api/v1/models/repurchase/actions/retrain"
    assert body == {"by": "dana", "reason": "the labels of May are in", "arguments": {}}
    assert "Authorization" not in headers
    [told] = app.success
    assert "run 77 started" in told.value


def test_a_refusal_of_the_api_is_shown(api: Api) -> None:
    api.status = 409
    assert "A run is unfinished" in said(_ask("again"))


@pytest.mark.usefixtures("environment")
def test_an_api_that_is_down_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELFLIFE_API", "http://127.0.0.1:9")
    text = said(_ask("again")).replace("\\", "")
    assert "does not answer" in text
    assert "shelflife doctor" in text


@pytest.mark.usefixtures("guarded")
def test_a_token_is_sent_along_when_its_owner_acts(api: Api, home: Path) -> None:
    token = made(home, "operate")
    _ask("again", token)
    assert api.seen[0][1]["Authorization"] == f"Bearer {token}"


@pytest.mark.usefixtures("guarded")
def test_a_signed_in_person_acts_by_our_signed_word(
    api: Api, home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signed_in(monkeypatch, email="bert@example.org", groups=["on-call"])
    from dashboard import asking

    reader = people.reader(ledger)
    asking.ask(reader, home, "repurchase", "retrain", {}, "the labels are in")
    path, headers, body = api.seen[0]
    found = access.believed(
        tokens.shared_key(home), headers["X-Shelflife-Assertion"], method="POST", path=path,
        now=datetime.now(UTC).timestamp(),
    )  # fmt: skip
    assert found is not None
    assert (found.name, found.groups, body["by"]) == (
        "bert@example.org", ("on-call",), "bert@example.org",
    )  # fmt: skip


@pytest.mark.usefixtures("guarded")
def test_who_may_not_act_is_refused_without_a_button(
    api: Api, home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.errors import ShelflifeError
    from dashboard import asking

    _signed_in(monkeypatch, email="vera@example.org")
    with pytest.raises(ShelflifeError, match="may not retrain"):
        asking.ask(people.reader(ledger), home, "repurchase", "retrain", {}, "why not")
    assert not api.seen
