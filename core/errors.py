"""Everything shelflife can refuse, drawn as a tree.

    ShelflifeError
    ├── SettingsError        the YAML file is wrong: key, value, what was expected, line
    ├── InputError           a caller's data is wrong: field, value, what was expected
    │   ├── TooLarge         ... and too big to be read at all
    │   ├── TooSlow          ... and did not come in time
    │   └── Unsupported      ... and in a format that nobody here reads
    ├── NotFound             a model, version, incident or run that does not exist
    ├── NotReady             it exists, but cannot answer yet
    │   └── Busy             too much is under way; the same request will do later
    │       └── QueueFull    ... for one model; says when to come again
    ├── TooLate              the caller's time passed before there was an answer
    ├── CorruptSegment       a sealed file does not match its recorded hash
    ├── StoreUnavailable     the folder or bucket of the segments does not answer; nothing is lost
    ├── RegistryError        MLflow could not do or say what was asked
    │   ├── UntrustedArtifact  loading it would run code nobody allowed
    │   └── Conflict           somebody else moved the alias first
    ├── TrainerFailed        the training subprocess raised, timed out or ran out of memory
    ├── GateRefused          a promotion was asked for that the gate does not allow
    ├── BadOutput            a model answered something that is no number, or not what it promised
    └── LeaseLost            another process took the work over

Errors are domain facts: they know nothing of HTTP or exit codes. Those are mapped at the edge
(`serving.app`, `shelflife.api`, `shelflife.cli`).
"""

from __future__ import annotations

_SHOWN = 120  # characters of an offending value that a message repeats


def shown(value: object) -> str:
    """The value as a message may show it: its repr, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


class ShelflifeError(Exception):
    """Base of every error shelflife raises on purpose."""


class SettingsError(ShelflifeError):
    """A setting that cannot be used, named with its line."""

    def __init__(
        self, key: str, value: object, expected: str, *, line: int | None = None, file: str = ""
    ) -> None:
        self.key, self.value, self.expected, self.line, self.file = key, value, expected, line, file
        where = f"{file or 'settings'}" + (f", line {line}" if line else "")
        super().__init__(f"{where}: {key} is {shown(value)}; expected {expected}")


class InputError(ShelflifeError):
    """Data from a caller that cannot be used: the field, its value, what was expected."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field}: got {shown(value)}; expected {expected}")


class TooLarge(InputError):
    """A body over the size limit; refused before it is read."""


class TooSlow(InputError):
    """A body that did not come in time."""


class Unsupported(InputError):
    """A media type or content encoding that is not read here."""


class NotFound(ShelflifeError):
    """Something asked for by name does not exist."""

    def __init__(self, kind: str, name: object, hint: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"no {kind} {shown(name)}" + (f"; {hint}" if hint else ""))


class NotReady(ShelflifeError):
    """It exists but cannot answer yet; asking again later is right."""


class Busy(NotReady):
    """Nothing was done because too much is under way, or a store cannot commit at the moment."""


class QueueFull(Busy):
    """More rows wait for a model than may.

    Args:
        retry_after: seconds after which those that wait should be answered.
    """

    def __init__(self, text: str, *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(text)


class TooLate(ShelflifeError):
    """The time a caller gave passed before there was an answer."""


class CorruptSegment(ShelflifeError):
    """A sealed segment whose bytes do not match the manifest; it is quarantined, never read."""


class StoreUnavailable(ShelflifeError):
    """The store of the segments cannot be reached or refuses; trying again later is right."""


class RegistryError(ShelflifeError):
    """MLflow could not do or say what was asked."""


class UntrustedArtifact(RegistryError):
    """Loading this artifact would run code that nobody allowed, or its hash is not the recorded."""


class Conflict(RegistryError):
    """The champion is no longer the version this promotion was decided against."""


class TrainerFailed(ShelflifeError):
    """The training subprocess raised, timed out, or ran out of memory."""


class GateRefused(ShelflifeError):
    """The gate does not allow this promotion; a forced promotion names who and why."""


class BadOutput(ShelflifeError):
    """A model answered something that is no number, or not what its spec promises."""


class LeaseLost(ShelflifeError):
    """Another process took this work over; what was computed here is not written."""
