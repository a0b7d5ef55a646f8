"""How fast the model is, measured as it runs."""

_WEIGHT = 0.3  # of a new measurement
_OPTIMISM = 1.1


class Throughput:
    """Tokens per second by batch size: small batches are slower per token, so each power of two has its own average.

    Estimates serve to refuse work. A wrong one could shut callers out for ever, since what is refused is never measured
    again; so each refusal makes the next estimate a little more hopeful, and each measurement settles it.
    """

    def __init__(self, tokens_per_second: float, batch_tokens: int) -> None:
        self._rates = {batch_tokens.bit_length(): tokens_per_second}
        self._batch_tokens = batch_tokens
        self._optimism = 1.0

    def measured(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        rate, size = tokens / max(seconds, 1e-9), tokens.bit_length()
        self._rates[size] = rate + (1 - _WEIGHT) * (self._rates.get(size, rate) - rate)
        self._optimism = 1.0

    def refused(self) -> None:
        """An estimate was used to refuse work."""
        self._optimism *= _OPTIMISM

    def rate(self, tokens: int | None = None) -> float:
        """Tokens per second of a batch of `tokens`; of full batches if None."""
        size = (tokens or self._batch_tokens).bit_length()
        return self._rates[min(self._rates, key=lambda known: abs(known - size))]

    def seconds(self, tokens: int, largest: int = 0) -> float:
        """Estimated time to compute `tokens` in full batches, or in larger ones if one item has `largest` tokens."""
        batch = min(tokens, max(self._batch_tokens, largest))
        return tokens / (self.rate(batch) * self._optimism) if tokens else 0.0
