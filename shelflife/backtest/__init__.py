"""Replay a history through the service's own code: what would have happened, and at what cost.

    import shelflife
    shelflife.backtest("history.parquet", target="churned", time="asked_at", label_delay="30d")

This folder and the function share a name, so the folder can be called: `shelflife.backtest(...)` is
`shelflife.backtest.face.backtest(...)`, whichever was touched first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from shelflife.backtest.face import backtest

        return backtest(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
