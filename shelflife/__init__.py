"""shelflife: serve a model, notice when it goes stale, retrain it when that helps, and prove it.

    import shelflife
    shelflife.register("churn", estimator, reference=frame, target="churned", time="asked_at")

This package is the face, where the rooms are put together. Start with `shelflife.tick`: one pass of
the loop for one model at one moment, the same code for the live service, the demo and a replay.
Heavy parts are imported when they are used: `import shelflife` costs a few milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shelflife.backtest.face import backtest as backtest
    from shelflife.client import Client as Client
    from shelflife.comparison import compare as compare
    from shelflife.register import register as register

__all__ = ["Client", "__version__", "backtest", "compare", "register"]
__version__ = "0.1.0"
_HOMES = {
    "Client": "client",
    "backtest": "backtest.face",
    "compare": "comparison",
    "register": "register",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        found = getattr(import_module(f"shelflife.{_HOMES[name]}"), name)
        globals()[name] = found  # the module of that name must not hide it from now on
        return found
    raise AttributeError(f"module 'shelflife' has no attribute {name!r}")
