"""Good calls beside other ones: the same few again and again, whose answers must not change by a bit."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc

from bench.reliability.calls import ONCE, Calls, options
from winnow.embed.v1 import embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2_grpc

_CALLS = 40  # different ones
_PAUSE_S = 0.02
_TIMEOUT_S = 30.0
_DOCUMENTS = 4


class Exact:
    """Calls the workers at `embed` and `rerank`, and the gateway, on a thread until the block ends.

    The first answers are those that all later ones must equal. Workers compute each anew; the gateway has them in its
    cache.
    """

    def __init__(self, embed: str, rerank: str, gateway: str) -> None:
        self._embed = Calls("embed", 11, 20, 0, 0, "")
        self._rerank = Calls("rerank", 12, 0, _DOCUMENTS, 10, "")
        self._channels = [grpc.insecure_channel(target, options(ONCE)) for target in (embed, rerank, gateway)]
        of_embed, of_rerank, of_gateway = self._channels
        self._embedding = [embed_pb2_grpc.EmbedServiceStub(one).Embed for one in (of_embed, of_gateway)]
        self._reranking = [rerank_pb2_grpc.RerankServiceStub(one).Rerank for one in (of_rerank, of_gateway)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exact", daemon=True)
        self.answers = 0
        self.other = 0
        """Answers that differ from the first."""
        self.failed = 0

    def __enter__(self) -> Self:
        self._expected = [[self._asked(number, place) for place in range(2)] for number in range(_CALLS)]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for channel in self._channels:
            channel.close()

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(_PAUSE_S):
            for place in range(2):
                try:
                    answer = self._asked(number % _CALLS, place)
                except grpc.RpcError:
                    self.failed += 1
                    continue
                self.answers += 1
                self.other += answer != self._expected[number % _CALLS][place]
            number += 1

    def _asked(self, number: int, place: int) -> tuple[bytes, Sequence[float]]:
        """A vector and some logits: of the workers (place 0) or of the gateway (1)."""
        vector = self._embedding[place](self._embed.request(number), timeout=_TIMEOUT_S).results[0].embedding.data
        results = self._reranking[place](self._rerank.request(number), timeout=_TIMEOUT_S).results
        return vector, [result.logit for result in sorted(results, key=lambda result: result.index)]
