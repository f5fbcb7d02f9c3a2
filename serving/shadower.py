"""The process behind `serving.shadow`: loads one prepared version and answers what it is sent.

    python -m serving.shadower PARENT

Messages come on stdin and go to stdout. It ends with its parent, and when stdin ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from core.errors import ShelflifeError
from core.spec import ModelSpec
from serving import backends, store
from serving.backend import Model, checked
from serving.columns import columns_of
from serving.shadow import Ask, Reply, Start, receive, send

_NICE = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int) -> None:
    """Answer until the worker that started us is gone."""
    end_with(parent)
    os.nice(_NICE)
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the messages
    start = msgspec.msgpack.decode(receive(inbox), type=Start)
    try:
        model, spec = _load(start)
    except Exception as error:
        send(outbox, Reply(error=f"{type(error).__name__}: {error}"))
        return
    send(outbox, Reply())
    with suppress(EOFError):
        while True:
            _answer(inbox, outbox, model, spec)


def _load(start: Start) -> tuple[Model, ModelSpec]:
    folder = Path(start.folder)
    _, spec = store.verify(folder)
    model = backends.load(
        start.backend,
        folder / store.MODEL,
        spec,
        threads=start.threads,
        trust_pickle=start.trust_pickle,
    )
    return model, spec


def _answer(inbox: IO[bytes], outbox: IO[bytes], model: Model, spec: ModelSpec) -> None:
    asked = msgspec.msgpack.decode(receive(inbox), type=Ask)
    try:
        missing = [name for name in spec.columns if name not in asked.columns]
        if missing:
            raise ShelflifeError(f"its columns {missing} are not among the champion's")
        columns = columns_of(spec, {name: asked.columns[name] for name in spec.columns})
        outputs = checked(model.infer(columns), len(next(iter(asked.columns.values()))))
        reply = Reply(outputs={name: array.tolist() for name, array in outputs.items()})
    except Exception as error:
        reply = Reply(error=f"{type(error).__name__}: {error}")
    send(outbox, reply)


def end_with(parent: int) -> None:
    """Die with the thread that started us (Linux); a worker that was killed leaves nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
