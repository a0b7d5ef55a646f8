"""`python -m bench.reliability.paced_worker embed|rerank TOKENS_PER_SECOND`: a worker whose model waits.

Server, admission, queue, tokenizer and packing are those of `services.embed` and `services.rerank`. Only the forward
pass is replaced: it takes a given time per token and hardly any of the processor, so that what is measured is how work
is queued, shared out and refused, and a dozen replicas fit on two cores.

A text's last hidden state is the mean of a random vector per token: a text has the same result in every batch and on
every replica, and no two texts have the same.
"""

import sys
import time
from collections.abc import Callable
from typing import Self, cast

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

import torch

from services.embed.settings import EmbedSettings
from services.embed.worker import embed_worker
from services.engine.layers.pooling import Pooling
from services.engine.models.base import ModelInput
from services.engine.models.qwen3.family import Qwen3Family
from services.engine.models.registry import FAMILIES
from services.rerank.settings import RerankSettings
from services.rerank.worker import rerank_worker
from services.worker.application import run_worker

_STEP_S = 0.004  # of a batch of any size: a real model reads its weights, so small batches are slower per token
_SCALE = 20.0  # so that the logits of different documents differ by more than rounding does


class PacedModel:
    """Takes `_STEP_S` and a time for each token."""

    causal, pooling = True, Pooling.LAST

    def __init__(self, vocabulary: int, width: int, tokens_per_second: float) -> None:
        self._values = _SCALE * torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(1))
        self._tokens_per_second = tokens_per_second
        self.hidden_size = width

    def __call__(self, batch: ModelInput) -> torch.Tensor:
        """See `Model`."""
        ends = time.perf_counter() + _STEP_S + len(batch.ids) / self._tokens_per_second
        values = self._values[batch.ids.long()].unsqueeze(1)
        # Attention whose scores are all equal is the mean of the values that a text's last token sees: of all its own.
        nothing = torch.zeros_like(values)
        means = batch.attend_wanted(nothing[batch.wanted_rows.long()], nothing, values).squeeze(1)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return means

    def compiled(self) -> Self:
        """See `Model`."""
        return self


def paced(tokens_per_second: float) -> type[Qwen3Family]:
    """The family, with a model that waits."""

    class Paced(Qwen3Family):
        def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], PacedModel]:  # type: ignore[override]
            return lambda max_tokens: PacedModel(self.config.vocab_size, self.config.hidden_size, tokens_per_second)

    return Paced


if __name__ == "__main__":
    kind, rate = sys.argv[1:]
    del sys.argv[1:]  # the rest of the process reads its own arguments
    # In this process the one family is another: everything else is what serves.
    cast("dict[str, type[Qwen3Family]]", FAMILIES)["qwen3"] = paced(float(rate))
    if kind == "embed":
        run_worker("embed", EmbedSettings, embed_worker)
    run_worker("rerank", RerankSettings, rerank_worker)
