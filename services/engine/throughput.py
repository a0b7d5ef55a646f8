"""How fast the model is, measured as it runs."""

from collections.abc import Mapping

import numpy as np

_WEIGHT = 0.3  # of a new measurement, in the logarithm: too slow and too fast weigh the same
_SURPRISE = 2.0  # a batch counts as at most so many times faster or slower than expected: one alone proves little
_FEW = 32  # tokens: what a fixed time is taken to be worth at least, so that one that seemed to be 0 can grow


class Throughput:
    """A batch takes a fixed time (launching kernels, reading the weights) and a time for each token.

    A small batch says much of the one and little of the other, and a large one the reverse: texts that come one by one
    find a processor that sleeps, and are slow, which says nothing of how fast a full batch is. The two follow what
    batches really take, each by its share in it.

    Estimates serve to refuse work, and only work corrects them: see `Scheduler._may_probe`. So one slow batch must not
    rule out all others of its size.
    """

    def __init__(self, rates: Mapping[int, float], batch_tokens: int) -> None:
        """`rates`: tokens per second by tokens of a batch, as measured at the start: at least one."""
        self._fixed_s, self._token_s = _fit(rates)
        self._batch_tokens = batch_tokens
        # One text longer than a full batch: attention makes it slower by its length, so by how much is kept by size.
        self._slower: dict[int, float] = {}

    def measured(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`.

        Normalised least mean squares (Haykin, Adaptive Filter Theory): the estimate for this size follows by
        `_WEIGHT`, and what that is in seconds is divided over its two parts in proportion to their squares.
        """
        expected = self._batch_s(tokens)
        off = min(max(seconds / expected, 1 / _SURPRISE), _SURPRISE) ** _WEIGHT - 1
        if (size := self._size_of_long(tokens)) is not None:
            self._slower[size] = self._slower.get(size, 1.0) * (1 + off)
            return
        fixed, each = max(self._fixed_s, _FEW * self._token_s), tokens * self._token_s
        step = off * expected / (fixed**2 + each**2)
        self._fixed_s = max(0.0, self._fixed_s + step * fixed**2)
        self._token_s += step * each**2 / tokens

    def rate(self, tokens: int | None = None) -> float:
        """Tokens per second of a batch of `tokens`; of full batches if None."""
        tokens = tokens or self._batch_tokens
        return tokens / self._batch_s(tokens)

    def seconds(self, tokens: int, largest: int = 0) -> float:
        """Estimated time to compute `tokens` in full batches, or in larger ones if one item has `largest` tokens."""
        batch = min(tokens, max(self._batch_tokens, largest))
        return tokens / self.rate(batch) if tokens else 0.0

    def tokens(self, seconds: float, most: int) -> int:
        """Tokens of the largest batch that takes no longer than `seconds`, up to `most`; 0 if there is none."""
        batch = most
        while batch and self.seconds(batch) > seconds:  # a smaller batch has a lower rate: each step comes nearer
            batch = max(0, min(batch - 1, int(seconds * self.rate(min(batch, self._batch_tokens)))))
        return batch

    def _batch_s(self, tokens: int) -> float:
        size = self._size_of_long(tokens)
        return (self._fixed_s + self._token_s * tokens) * (1.0 if size is None else self._slower.get(size, 1.0))

    def _size_of_long(self, tokens: int) -> int | None:
        size = tokens.bit_length()
        return size if size > self._batch_tokens.bit_length() else None


def _fit(rates: Mapping[int, float]) -> tuple[float, float]:
    """Seconds of a batch, and seconds for each of its tokens: least squares of the relative errors."""
    tokens = np.array(sorted(rates), np.float64)
    seconds = tokens / [rates[int(size)] for size in tokens]
    if len(tokens) > 1:
        terms = np.stack([1 / seconds, tokens / seconds], axis=1)
        fixed, each = np.linalg.lstsq(terms, np.ones(len(tokens)), rcond=None)[0]
        if fixed >= 0 and each > 0:
            return float(fixed), float(each)
    return 0.0, float(seconds[-1] / tokens[-1])
