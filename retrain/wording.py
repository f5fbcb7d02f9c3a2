"""How numbers and counts are put into the sentences people read."""

from __future__ import annotations

METRIC_WORDS = {"brier": "Brier", "log_loss": "log loss", "mae": "MAE", "rmse": "RMSE"}


def rounded(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponents where they can be helped; `unknown` for None."""
    if value is None:
        return "unknown"
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:,.0f}" if "e+" in text else text


def plural(count: int, noun: str) -> str:
    """`1 run`, `1,204 runs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
