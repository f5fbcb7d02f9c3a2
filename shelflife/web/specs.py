"""What a worker without MLflow knows of a model: its champion's spec, and who was champion when."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import sqlalchemy as sa

from core import schema
from core.errors import NotFound, NotReady, UntrustedArtifact
from core.ledger import Ledger
from core.spec import NAME, ModelSpec
from serving import store
from shelflife.web.rows import Promotions

_Signature = tuple[int, int]


class Specs:
    """The specs that `serving.deploy` has prepared, read again when a pointer moves."""

    def __init__(self, home: Path, ledger: Ledger) -> None:
        self._home, self._ledger = home, ledger
        self._known: dict[str, tuple[_Signature, ModelSpec]] = {}
        self._names = frozenset[str]()

    def name(self, model: str) -> str:
        """The name itself, if it is a model of this installation.

        Raises:
            NotFound: it is not.
        """
        if model not in self._names:
            self._names = frozenset(self.names())
        if model not in self._names:
            raise NotFound("model", model, f"known models: {sorted(self._names)}")
        return model

    def names(self) -> set[str]:
        """Every model that ever had a champion."""
        with self._ledger.read() as tx:
            return set(tx.scalars(sa.select(schema.promotions.c.model).distinct()))

    def spec(self, model: str) -> ModelSpec:
        """The spec of the model's champion.

        Raises:
            NotReady: the scheduler has not prepared it yet.
        """
        path = store.pointers(self._home) / f"{model}.json"
        if not NAME.match(model):
            raise NotFound("model", model)
        try:
            found = path.stat()
            signature = (found.st_ino, found.st_mtime_ns)
            known = self._known.get(model)
            if known is None or known[0] != signature:
                known = (signature, self._read(path))
                self._known[model] = known
        except FileNotFoundError:
            text = f"{model} is not prepared yet (`shelflife watch` does it); send it again later"
            raise NotReady(text) from None
        return known[1]

    def _read(self, pointer: Path) -> ModelSpec:
        folder = store.prepared(self._home, store.read_pointer(pointer).champion.folder)
        manifest = (folder / store.MANIFEST).read_bytes()
        data = (folder / store.SPEC).read_bytes()
        files = msgspec.json.decode(manifest, type=store.Manifest).files
        whole = hashlib.sha256(manifest).hexdigest() == folder.name
        if not whole or files.get(store.SPEC) != hashlib.sha256(data).hexdigest():
            raise UntrustedArtifact(f"{folder}: {store.SPEC} is not as it was prepared")
        return msgspec.json.decode(data, type=ModelSpec)

    def promotions(self, model: str) -> Promotions:
        """Which version was the champion when."""
        table = schema.promotions.c
        query = sa.select(table.at, table.version).where(table.model == model)
        with self._ledger.read() as tx:
            found = tx.execute(query.order_by(table.at, table.id)).all()
        return Promotions(
            times=tuple(row.at for row in found), versions=tuple(row.version for row in found)
        )
