"""How fast the model is, measured as it runs."""

import bisect
from collections.abc import Mapping

_WEIGHT = 0.3  # of a new measurement, for all sizes
_OWN_WEIGHT = 0.02  # what it counts more for its own size: how sizes compare changes little, and slowly
_SURPRISE = 2.0  # a batch counts as at most so many times faster or slower than expected: one alone proves little


class Throughput:
    """Tokens per second by batch size: small batches are slower per token, so each power of two has its own average.

    A machine that becomes faster or slower does so for all sizes, so a batch of one size corrects the others in
    proportion. Otherwise a worker that starts beside other load, and then only meets small batches, would never learn
    how fast its large ones are.

    Estimates serve to refuse work, and only work corrects them: see `Scheduler._may_probe`. So one slow batch must not
    rule out all others of its size.
    """

    def __init__(self, rates: Mapping[int, float], batch_tokens: int) -> None:
        """`rates`: tokens per second by tokens of a batch, as measured at the start: at least one."""
        self._rates = {tokens.bit_length(): rate for tokens, rate in rates.items()}
        self._batch_tokens = batch_tokens

    def measured(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        rate, own = tokens / max(seconds, 1e-9), tokens.bit_length()
        expected = self.rate(tokens)
        off = min(max(rate / expected, 1 / _SURPRISE), _SURPRISE) - 1
        if own > self._batch_tokens.bit_length():  # one long text: attention makes it slower by its length
            self._rates[own] = expected * (1 + _WEIGHT * off)
            return
        rates = {own: expected, **self._rates}
        self._rates = {size: rate * (1 + _WEIGHT * off) for size, rate in rates.items()}
        self._rates[own] *= 1 + _OWN_WEIGHT * off

    def rate(self, tokens: int | None = None) -> float:
        """Tokens per second of a batch of `tokens`; of full batches if None.

        Interpolated between known sizes; beyond them, that of the nearest.
        """
        size = (tokens or self._batch_tokens).bit_length()
        known = sorted(self._rates)
        at = bisect.bisect_left(known, size)
        smaller, larger = known[max(at - 1, 0)], known[min(at, len(known) - 1)]
        if smaller == larger:
            return self._rates[smaller]
        share = (size - smaller) / (larger - smaller)
        return float(self._rates[smaller] ** (1 - share) * self._rates[larger] ** share)

    def seconds(self, tokens: int, largest: int = 0) -> float:
        """Estimated time to compute `tokens` in full batches, or in larger ones if one item has `largest` tokens."""
        batch = min(tokens, max(self._batch_tokens, largest))
        return tokens / self.rate(batch) if tokens else 0.0

    def tokens(self, seconds: float, most: int) -> int:
        """Tokens of the largest batch that takes no longer than `seconds`, up to `most`; 0 if there is none."""
        batch = most
        while batch and self.seconds(batch) > seconds:  # a smaller batch has a lower rate: each step comes nearer
            batch = max(0, int(seconds * self.rate(min(batch, self._batch_tokens))))
        return batch
