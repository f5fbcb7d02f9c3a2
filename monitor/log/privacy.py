"""Personal data stops here: which input columns a store may see, and which only as a pseudonym.

Applied to every row before it reaches any store. A withheld column is logged as missing (null), so
that rows keep their shape; a hashed one as `h:` and 128 bits of BLAKE2b keyed with a secret: equal
values of a column stay equal (and joinable between models under one key), and without the key
nobody can look a value up by hashing guesses. What is withheld or hashed cannot be monitored or
learned from: see `not_logged`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping

from msgspec import Struct

from core.errors import SettingsError
from core.settings import PrivacySettings, secret
from core.spec import Scalar

_HASH = "h:"


class Privacy(Struct, frozen=True):
    """The rule of one model; build it with `privacy_of`."""

    allow: frozenset[str]
    deny: frozenset[str]
    hashed: frozenset[str]
    key: bytes

    def __repr__(self) -> str:
        counts = (len(self.allow), len(self.deny), len(self.hashed))
        return "Privacy({} allowed, {} denied, {} hashed)".format(*counts)  # never its key

    def apply(self, inputs: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The inputs as they may be kept."""
        return {name: self._value(name, value) for name, value in inputs.items()}

    def _value(self, name: str, value: Scalar) -> Scalar:
        if value is None or withheld(name, self.allow, self.deny, self.hashed):
            return None
        return self._pseudonym(name, value) if name in self.hashed else value

    def _pseudonym(self, name: str, value: Scalar) -> str:
        if isinstance(value, str) and value.startswith(_HASH) and len(value) == len(_HASH) + 32:
            return value  # an event replayed as it was read from a log
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1.0 and 1 are the same customer
        text = f"{len(name)}:{name}{json.dumps(value)}"
        return _HASH + hashlib.blake2b(text.encode(), key=self.key, digest_size=16).hexdigest()


def withheld(
    name: str, allow: Collection[str], deny: Collection[str], hashed: Collection[str]
) -> bool:
    """Whether a column is logged as missing: denied, or not among those allowed."""
    return name in deny or bool(allow and name not in allow and name not in hashed)


def privacy_of(settings: PrivacySettings, where: str) -> Privacy | None:
    """The rule that settings ask for; None where they ask for nothing.

    Args:
        where: the settings' place, for messages: `models.churn.privacy`.

    Raises:
        SettingsError: columns are to be hashed and no key is named, or it is too short to be one.
    """
    if not (settings.allow or settings.deny or settings.hash):
        return None
    key = secret(settings.key)
    material = key.reveal().encode() if key else b""
    if settings.hash and len(material) < 16:
        expected = "env:NAME or file:/path of at least 16 characters, since `hash` names columns"
        raise SettingsError(f"{where}.key", settings.key and "a shorter one", expected)
    return Privacy(
        allow=frozenset(settings.allow),
        deny=frozenset(settings.deny),
        hashed=frozenset(settings.hash),
        # BLAKE2b takes keys of at most 64 bytes.
        key=hashlib.blake2b(material).digest() if material else b"",
    )


def not_logged(settings: PrivacySettings, columns: Collection[str]) -> tuple[str, ...]:
    """Those of a model's columns whose values the log does not have as the model saw them."""
    s = settings
    return tuple(
        name for name in columns if name in s.hash or withheld(name, s.allow, s.deny, s.hash)
    )
