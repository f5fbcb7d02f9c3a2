"""MLflow's registry webhooks as hints: whoever moves something there, we look sooner.

A hint says only "look": nothing in its body is believed or even read, so a forged or repeated one
costs a look, at most one a second. MLflow sends hints from a pool in its own memory, so they get
lost; the poll every `mlflow.poll_every` finds what they would have said.

MLflow signs as Standard Webhooks does, under headers of its own and with the secret's text as the
key (mlflow/webhooks/delivery.py, 3.17): `X-MLflow-Signature: v1,` and the base64 of HMAC-SHA256
over `delivery id.timestamp.body`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from core import schema
from core.errors import NotFound, ShelflifeError
from core.ledger import Ledger
from core.settings import Secret, secret
from core.times import iso
from shelflife.web.edge import Bodies, answer, refused

KEY = "registry_hint"  # in the ledger's `meta`: when we were last told to look
TOLERANCE = timedelta(minutes=5)  # of a signature's timestamp, either way
_APART = timedelta(seconds=1)


class Hints:
    """The way in for hints; closed without a secret.

    Args:
        reference: the setting that names the secret.
        clock: wall clock.

    Raises:
        SettingsError: the secret's variable or file does not exist.
    """

    def __init__(
        self, reference: str, ledger: Ledger, bodies: Bodies, *, clock: Callable[[], datetime]
    ) -> None:
        self._secret = secret(reference)
        self._ledger, self._bodies, self._clock = ledger, bodies, clock
        self._last: datetime | None = None

    async def receive(self, request: Request) -> Response:
        """Note that the registry may have changed."""
        if self._secret is None:
            raise NotFound("way in", "mlflow", "`mlflow.webhook_secret` in the settings opens it")
        now = self._clock()
        async with self._bodies.read(request) as raw:
            if not genuine(self._secret, request.headers, raw, now):
                return refused(401, ShelflifeError("the signature is missing, wrong or too old"))
        if self._last is None or now - self._last >= _APART:
            await run_in_threadpool(note, self._ledger, now)
            self._last = now
        return answer({"state": "noted"}, status=202)


def genuine(key: Secret, headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    """Whether somebody who knows the secret signed this body lately."""
    stamp = headers.get("x-mlflow-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit()) or len(stamp) > 12:
        return False
    if abs(now.timestamp() - int(stamp)) > TOLERANCE.total_seconds():
        return False
    signed = f"{headers.get('x-mlflow-delivery-id', '')}.{stamp}.".encode() + body
    digest = hmac.new(key.reveal().encode(), signed, hashlib.sha256).digest()
    wanted = b"v1," + base64.b64encode(digest)
    given = headers.get("x-mlflow-signature", "").encode("latin-1", "replace")
    return any(hmac.compare_digest(wanted, each) for each in given.split())


def note(ledger: Ledger, at: datetime) -> None:
    """Leave the hint for the scheduler."""
    table = schema.meta
    update = table.update().where(table.c.key == KEY).values(value=iso(at))
    with ledger.write() as tx:
        if tx.execute(update).rowcount:
            return
        try:
            with tx.begin_nested():
                tx.execute(table.insert().values(key=KEY, value=iso(at)))
        except sa.exc.IntegrityError:  # another worker was faster
            tx.execute(update)


def noted(ledger: Ledger) -> str:
    """The newest hint; empty when there was none."""
    table = schema.meta
    with ledger.read() as tx:
        return str(tx.scalar(sa.select(table.c.value).where(table.c.key == KEY)) or "")
