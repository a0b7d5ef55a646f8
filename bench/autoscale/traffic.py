"""A day of traffic: the slow wave of a day, a sudden spike, and a bulk job."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Traffic:
    """Interactive requests arrive at a given rate. Bulk work is sent, `bulk_window` tokens at a time, until done."""

    rate: npt.NDArray[np.float64]
    """Interactive requests per second, for each second."""
    request_tokens: float
    bulk_start_s: int
    bulk_tokens: float
    bulk_window: float


def day(peak: float, request_tokens: float = 100.0, seconds: int = DAY_S) -> Traffic:
    """`peak` requests per second in the early afternoon, a fifth of that at night.

    At 09:30 the traffic doubles within a minute, for 15 minutes. At 03:00 a job starts that embeds as many tokens as
    one hour at the peak, through 32 streams with the gateway's default window.
    """
    t = np.arange(seconds, dtype=np.float64)
    wave = 0.6 + 0.4 * np.sin(2 * np.pi * (t / DAY_S - 0.33))
    spike = np.interp(t, [34_200, 34_260, 35_100, 35_400], [1.0, 2.0, 2.0, 1.0])
    rate = peak * wave * spike
    return Traffic(rate, request_tokens, 3 * 3600, peak * request_tokens * 3600, 32 * 65_536)
