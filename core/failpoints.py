"""Named places at which a test kills, stops or interrupts this process.

`SHELFLIFE_FAIL_POINT=after_train` dies there as by `kill -9`; `after_train:stop` pauses there as by
`kill -STOP` (a suspended machine, a long garbage collection), once. Inside one process a test sets
`hook` instead. Without either a fail point costs one look into a dictionary.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "SHELFLIFE_FAIL_POINT"
#: Called with the name of every fail point that is passed; what it raises goes through.
hook: Callable[[str], None] | None = None


def fail_point(name: str) -> None:
    """Die or pause here when the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        point, _, how = wanted.partition(":")
        if point == name:
            if how != "stop":
                os._exit(137)
            del os.environ[VARIABLE]
            os.kill(os.getpid(), signal.SIGSTOP)
    if hook is not None:
        hook(name)
