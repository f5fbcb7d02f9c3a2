"""When a difference between two models counts: paired evidence, and the rule that reads it. Pure.

Losses that follow each other in time resemble each other, so rows do not count one by one. The
standard error of a mean difference is that of independent rows times the square root of tau, the
integrated autocorrelation time by Geyer's initial positive sequence (Statistical Science 7(4),
1992), never below one; rows / tau are what the rows are worth. `benchmarks/gate.py` compares its
coverage with block means, Newey-West and plain Student's t.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from msgspec import Struct

Rule = Literal["ahead", "superior", "not_worse"]

#: One-sided confidence of the rule `ahead`, on evidence in which newer rows weigh more.
AHEAD = 0.75
#: A row this share of the held-out rows older than the newest weighs half as much.
HALF_LIFE = 1 / 3
_LONGEST = 4  # autocorrelations are summed up to a fourth of the rows


class Evidence(Struct, frozen=True, kw_only=True):
    """A mean difference of paired losses, positive where the candidate is better.

    Numbers are None where they do not exist: no rows, or differences that do not vary.
    """

    gain: float | None
    low: float | None  # lower end of the one-sided interval, and the upper end that mirrors it
    high: float | None
    z: float | None  # gain over its standard error
    newest_z: float | None  # the same with newer rows weighing more (`HALF_LIFE`)
    n: int  # rows compared
    worth: float  # how many independent rows they are worth


def ahead(
    gain: float | None,
    z: float | None,
    n: int,
    *,
    newest_z: float | None = None,
    rule: Rule = "ahead",
    confidence: float = 0.9,
) -> bool:
    """Whether the evidence is enough for a promotion. What was not measured is never enough.

    Args:
        gain: the champion's mean loss minus the candidate's, on rows neither has learned from.
        z: the gain over a standard error that respects autocorrelation.
        n: rows compared.
        newest_z: the same with newer rows weighing more; None where the order is not known.
        rule: `ahead`: ahead at 75 % confidence, newer rows weighing more (without `newest_z`:
            merely ahead); `superior`: ahead at `confidence`, all rows alike; `not_worse`: not
            clearly behind at `confidence`, for candidates wanted for another reason.
        confidence: one-sided, of the last two rules.
    """
    from scipy.special import ndtri

    if gain is None or z is None or not (math.isfinite(gain) and math.isfinite(z)) or n < 1:
        return False
    if rule == "superior":
        return z > float(ndtri(confidence))
    if rule == "not_worse":
        return z > -float(ndtri(confidence))
    if newest_z is None:
        return gain > 0 and z > 0
    return math.isfinite(newest_z) and newest_z > float(ndtri(AHEAD))


def evidence(difference: np.ndarray, confidence: float = 0.9) -> Evidence:
    """The evidence in paired differences of losses (champion minus candidate), shape (n,).

    Args:
        difference: in order of time; rows that are not finite are left out.
        confidence: one-sided, of `low`: Student's t with rows / tau - 1 degrees of freedom.
    """
    from scipy.special import stdtrit

    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if not n:
        return Evidence(gain=None, low=None, high=None, z=None, newest_z=None, n=0, worth=0.0)
    gain = float(difference.mean())
    # A constant column's sd is rounding noise, not exactly zero: compare the values themselves.
    if n < 2 or difference.min() == difference.max():
        return Evidence(gain=gain, low=None, high=None, z=None, newest_z=None, n=n, worth=float(n))
    tau = correlation_time(difference)
    worth = n / tau
    error = float(difference.std(ddof=1)) / math.sqrt(worth)
    half = float(stdtrit(max(worth - 1, 1.0), confidence)) * error
    return Evidence(
        gain=gain,
        low=gain - half,
        high=gain + half,
        z=gain / error,
        newest_z=_z(difference * _weights(n)),
        n=n,
        worth=worth,
    )


def correlation_time(values: np.ndarray) -> float:
    """Geyer's integrated autocorrelation time of a series in order of time, at least one.

    Sums pairs of neighbouring autocorrelations while they are positive; a constant series has one.
    """
    n = len(values)
    if n < 8:
        return 1.0
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 2 * n)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum))[:n]
    if not covariance[0] > 0:
        return 1.0
    pairs = (covariance[0 : n // 2 * 2 : 2] + covariance[1 : n // 2 * 2 : 2]) / covariance[0]
    negative = np.flatnonzero(pairs <= 0)
    count = min(int(negative[0]) if len(negative) else len(pairs), max(1, n // (2 * _LONGEST)))
    return max(1.0, float(-1 + 2 * pairs[:count].sum()))


def _weights(n: int) -> np.ndarray:
    age = np.arange(n - 1, -1, -1)
    weights: np.ndarray = 0.5 ** (age / (HALF_LIFE * n))
    return weights


def _z(values: np.ndarray) -> float | None:
    sd = float(values.std(ddof=1))
    if not sd > 0:
        return None
    return float(values.mean()) / (sd * math.sqrt(correlation_time(values) / len(values)))
