"""The pictures of docs/concepts.md, drawn from the demo's data by the product's own functions.

    python docs/pictures.py

Takes a minute (one backtest of three policies). Writes docs/images/concept-*.svg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.dates
import numpy as np
import pandas as pd

mpl.use("svg")
import matplotlib.pyplot as plt

import shelflife

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE, GREY, RED = "#2563a8", "#c2571a", "#8a8f98", "#b3261e"
mpl.rcParams.update({
    "figure.figsize": (8, 2.9), "figure.constrained_layout.use": True, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "shelflife",
    "savefig.facecolor": "white",
})  # fmt: skip
NUMBERS = ["basket_value", "basket_lines", "basket_units", "days_since_previous"]
NUMBERS += ["previous_invoices", "lifetime_value", "days_since_first", "hour"]
INPUTS = [*NUMBERS, "country", "weekday"]


def main() -> None:
    """Draw all of them."""
    rows = pd.read_parquet(ROOT / "data" / "retail.parquet")
    loop()
    drift(rows)
    labels(rows)
    found = shelflife.backtest(
        rows, target="bought_again", time="invoice_time", label_time="label_time",
        train_rows=3686, window="28d", policies=["default", "never"],
    )  # fmt: skip
    decay(found)


def save(figure: Any, name: str) -> None:
    """One picture; without a date, so that drawing it again changes nothing."""
    figure.savefig(IMAGES / f"concept-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def loop() -> None:
    """The loop as boxes and arrows."""
    figure, axes = plt.subplots(figsize=(8, 1.5))
    steps = ["serve", "log", "monitor", "decide", "retrain", "gate", "promote", "watch"]
    for i, step in enumerate(steps):
        axes.text(
            i, 0, step, ha="center", va="center", color="white", fontsize=10,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": BLUE, "edgecolor": "none"},
        )  # fmt: skip
        if i:
            axes.annotate("", (i - 0.36, 0), (i - 0.62, 0), arrowprops={"arrowstyle": "->"})
    axes.annotate(
        "", (0, -0.35), (7, -0.35),
        arrowprops={"arrowstyle": "->", "color": GREY, "connectionstyle": "bar,fraction=-0.05"},
    )  # fmt: skip
    axes.text(3.5, -1.25, "the new champion serves", ha="center", color=GREY)
    axes.set(xlim=(-0.6, 7.6), ylim=(-1.5, 0.6))
    axes.axis("off")
    save(figure, "loop")


def drift(rows: pd.DataFrame) -> None:
    """Columns by months: how far from the reference, and which of it is more than noise."""
    reference = rows[rows["invoice_time"] < "2010-04-01"][INPUTS]
    months = pd.date_range("2010-04-01", "2011-03-01", freq="MS")
    effect = pd.DataFrame(index=INPUTS, columns=range(len(months)), dtype=float)
    marked = []
    for i, month in enumerate(months):
        inside = rows["invoice_time"].between(month, month + pd.DateOffset(months=1))
        table = shelflife.compare(reference, rows[inside][INPUTS]).to_frame().set_index("column")
        effect[i] = table["psi"].reindex(INPUTS)
        marked += [(i, INPUTS.index(name)) for name in table.index[table["drifted"].astype(bool)]]
    figure, axes = plt.subplots()
    image = axes.imshow(np.minimum(effect, 1.0), cmap="Blues", aspect="auto", vmin=0, vmax=1)
    axes.scatter(*zip(*marked, strict=True), marker="s", s=16, color=ORANGE)
    axes.set_yticks(range(len(INPUTS)), INPUTS)
    axes.set_xticks(range(len(months)), [f"{month:%b %y}" for month in months])
    figure.colorbar(image, label="PSI (1 and more)")
    axes.set_title("shade: how far (PSI); mark: more than noise", loc="left", fontsize=9)
    save(figure, "drift")


def labels(rows: pd.DataFrame) -> None:
    """A check's view of labels that come 30 days late."""
    at = pd.Timestamp("2010-09-01")
    days = pd.date_range(at - pd.Timedelta(days=60), at, freq="D")
    asked = [rows["invoice_time"].between(day, day + pd.Timedelta(days=1)) for day in days]
    known = [int((inside & (rows["label_time"] <= at)).sum()) for inside in asked]
    figure, axes = plt.subplots()
    axes.bar(days, [int(inside.sum()) for inside in asked], color="#cfd4da", label="asked")
    axes.bar(days, known, color=BLUE, label="label known on 1 September")
    axes.set(ylabel="rows a day", ylim=(0, 1.25 * max(known)))
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%d %b"))
    axes.annotate(
        "estimated only", (at - pd.Timedelta(days=15), max(known) * 0.9), ha="center", color=GREY
    )
    axes.legend(frameon=False, loc="upper left", ncols=2)
    save(figure, "labels")


def decay(found: Any) -> None:
    """The loss with and without retraining, on the same history."""
    figure, axes = plt.subplots()
    for name, colour in (("never", GREY), ("default", BLUE)):
        windows = found.policies[name].windows
        moments = [pd.Timestamp(window.start) for window in windows]
        axes.plot(moments, [window.loss for window in windows], color=colour, label=name)
        for window, moment in zip(windows, moments, strict=True):
            if window.promoted:
                axes.axvline(moment, color=BLUE, linewidth=0.8, linestyle=":")
            if window.alarm and name == "never":
                axes.plot(moment, window.loss, "v", color=RED)
    axes.plot([], [], ":", color=BLUE, label="promotion")
    axes.plot([], [], "v", color=RED, label="page")
    axes.set_ylabel("Brier score of the window")
    axes.legend(frameon=False, ncols=4, loc="upper left")
    save(figure, "decay")


if __name__ == "__main__":
    main()
