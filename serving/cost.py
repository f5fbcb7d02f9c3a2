"""How long a model takes for so many rows, learned from every call."""

from __future__ import annotations

_KEEP = 0.98  # of what was known, at every call: about fifty calls are remembered


class Cost:
    """`seconds ≈ fixed + each · rows`, by least squares in which older calls fade."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._line: tuple[float, float] | None = (0.0, 0.0)  # None: to be worked out

    def saw(self, rows: int, seconds: float) -> None:
        """One call."""
        self._n = _KEEP * self._n + 1.0
        self._x = _KEEP * self._x + rows
        self._y = _KEEP * self._y + seconds
        self._xx = _KEEP * self._xx + rows * rows
        self._xy = _KEEP * self._xy + rows * seconds
        self._line = None

    @property
    def known(self) -> bool:
        """Whether there was a call."""
        return self._n > 0

    def line(self) -> tuple[float, float]:
        """Seconds per call and per row; never negative. With calls of one size only, the rows are
        charged for nothing: what a larger batch costs shows when there is one."""
        found = self._line
        if found is None:
            found = self._line = self._fitted()
        return found

    def _fitted(self) -> tuple[float, float]:
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread <= 1e-9 * mean_x * mean_x:
            return mean_y, 0.0
        each = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        fixed = mean_y - each * mean_x
        if fixed < 0:
            return 0.0, mean_y / mean_x
        return fixed, each

    def of(self, rows: int) -> float:
        """Seconds that so many rows should take."""
        fixed, each = self.line()
        return fixed + each * rows

    def rows_within(self, seconds: float) -> float:
        """Rows that should take no longer than that; less than one where even the call does."""
        fixed, each = self.line()
        if seconds <= fixed:
            return 0.0
        return (seconds - fixed) / each if each > 0 else float("inf")
