"""Actions, asked of the API in the reader's own name. The API checks who may once more.

| variable | meaning |
|---|---|
| `SHELFLIFE_API` | address of the serving process, `http://127.0.0.1:8080` |
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import sqlalchemy as sa
from msgspec import Struct

from core import access, schema, tokens
from core.errors import ShelflifeError
from core.ledger import Ledger
from dashboard import people
from dashboard.people import Reader

_TIMEOUT = 10.0  # seconds


class Asked(Struct, frozen=True, kw_only=True):
    """What became of a request."""

    id: int
    model: str
    action: str
    state: str  # asked, running, done or failed
    result: str


class _Accepted(Struct):
    command: int


class _Refused(Struct):
    error: str = ""


def ask(
    reader: Reader, home: Path | None, model: str, action: str, arguments: dict[str, str | int],
    reason: str,
) -> int:  # fmt: skip
    """Ask for an action; returns the id under which its outcome can be read.

    Raises:
        ShelflifeError: the reader may not, the API refuses, or it cannot be reached.
    """
    path = f"/api/v1/models/{model}/actions/{action}"
    return _accepted(_post(reader, home, action, path, {"reason": reason, "arguments": arguments}))


def silence(reader: Reader, home: Path | None, incident: int, span: str, reason: str) -> None:
    """Ask that an incident is not told of for so long; it holds at once.

    Raises: see `ask`.
    """
    path = f"/api/v1/incidents/{incident}/silence"
    answer = _post(reader, home, "silence", path, {"reason": reason, "until": span})
    if answer.status_code != 200:
        _accepted(answer)


def _post(
    reader: Reader, home: Path | None, action: str, path: str, said: dict[str, object]
) -> httpx.Response:
    address = os.environ.get("SHELFLIFE_API", "")
    if not reader.may(action) or reader.identity is None:
        raise ShelflifeError(f"{reader.name or 'nobody'} may not {action}")
    if not address:
        raise ShelflifeError("SHELFLIFE_API is not set; start the dashboard with `shelflife up`")
    body = msgspec.json.encode({"by": reader.identity.name, **said})
    headers = {"Content-Type": "application/json"} | _proof(reader, home, path, body)
    try:
        with httpx.Client(timeout=_TIMEOUT, trust_env=False) as client:
            return client.post(address + quote(path), content=body, headers=headers)
    except httpx.HTTPError as error:
        raise ShelflifeError(
            f"the API at {address} does not answer ({type(error).__name__}); is `shelflife serve` "
            "running? `shelflife doctor` finds out"
        ) from None


def _proof(reader: Reader, home: Path | None, path: str, body: bytes) -> dict[str, str]:
    """How the API learns who asks: their own token, or our signed word."""
    if reader.token:
        return {"Authorization": f"Bearer {reader.token}"}
    if reader.identity is None or reader.identity.how == "local":
        return {}
    if home is None:
        raise ShelflifeError("SHELFLIFE_HOME is not set; start the dashboard with `shelflife up`")
    word = access.asserted(
        tokens.shared_key(home),
        name=reader.name,
        groups=reader.groups,
        how=people.how(reader),
        method="POST",
        path=path,
        body=body,
        at=time.time(),
    )
    return {"X-Shelflife-Assertion": word}


def _accepted(answer: httpx.Response) -> int:
    try:
        if answer.status_code == 202:
            return msgspec.json.decode(answer.content, type=_Accepted).command
        said = msgspec.json.decode(answer.content, type=_Refused).error
    except msgspec.MsgspecError:
        said = ""
    raise ShelflifeError(said or f"the API answered {answer.status_code}")


def outcome(ledger: Ledger, identity: int) -> Asked | None:
    """What became of a request; None where there is none of this id."""
    table = schema.commands
    columns = [table.c[name] for name in Asked.__struct_fields__]
    with ledger.read() as tx:
        row = tx.execute(sa.select(*columns).where(table.c.id == identity)).first()
    return None if row is None else Asked(**row._mapping)
