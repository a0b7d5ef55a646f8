"""A token bucket: a rate, and a burst after a pause. Plain numbers; the caller passes the time."""

# Tokens that a sum of floats may be off by: who has waited as long as it was told must not be told to wait again.
_ROUNDING = 1e-3


class TokenBucket:
    """Holds at most `burst` tokens and gains `rate` a second.

    What was taken by an estimate is corrected later, so that it may be overdrawn: the rate holds for what was used.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._held, self._at = burst, now

    def wait_s(self, tokens: float, now: float) -> float:
        """Seconds until so many may be taken: 0 if they may be now. More than the burst need a full bucket."""
        self._refill(now)
        short = min(tokens, self._burst) - self._held
        return short / self._rate if short > _ROUNDING else 0.0

    def take(self, tokens: float, now: float) -> None:
        """Takes them, whether they are there or not. A negative number gives some back."""
        self._refill(now)
        self._held = min(self._burst, self._held - tokens)

    def full(self, now: float) -> bool:
        """Whether it holds as much as it can."""
        self._refill(now)
        return self._held >= self._burst

    def adjust(self, rate: float, burst: float, now: float) -> None:
        """Another rate and burst from now on."""
        self._refill(now)
        self._rate, self._burst = rate, burst
        self._held = min(self._held, burst)

    def _refill(self, now: float) -> None:
        self._held = min(self._burst, self._held + self._rate * (now - self._at))
        self._at = now
