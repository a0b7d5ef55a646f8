"""Callers of the gateway, who never stop, and what became of each call."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Self

import grpc

from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

_TIMEOUT_S = 20.0
_PAUSE_S = 0.1


@dataclass(frozen=True)
class Call:
    """One call: its RPC, when it began (loop.time()), how long it took, and what it failed with."""

    name: str
    began: float
    seconds: float
    failure: str | None


class Load:
    """Each of `callers` makes calls of the `kinds` by turns; every text is new, so no cache answers for a worker.

    An async context manager. Nothing is tried again: what fails is counted.
    """

    def __init__(
        self,
        target: str,
        callers: int = 6,
        kinds: tuple[str, ...] = ("Embed", "Rerank", "Embed", "Search"),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self._target, self._callers, self._kinds, self._credentials = target, callers, kinds, credentials
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._caller(number)) for number in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    @property
    def failures(self) -> list[Call]:
        """Those that did not end with OK."""
        return [call for call in self.calls if call.failure is not None]

    async def some(self, count: int) -> None:
        """Waits for `count` more calls to end."""
        wanted = len(self.calls) + count
        while len(self.calls) < wanted:
            self._more.clear()
            await self._more.wait()

    async def _caller(self, number: int) -> None:
        # A connection for each: kube-proxy chooses a gateway once for each of them.
        options: list[tuple[str, str | int]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.ssl_target_name_override", "winnow-gateway"),
        ]
        channel = (
            grpc.aio.secure_channel(self._target, self._credentials, options)
            if self._credentials
            else grpc.aio.insecure_channel(self._target, options)
        )
        async with channel:
            embed = embed_pb2_grpc.EmbedServiceStub(channel)
            rerank = rerank_pb2_grpc.RerankServiceStub(channel)
            retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            for kind in itertools.cycle(self._kinds):
                if self._stop.is_set():
                    break
                text = f"text {next(self._numbers)} of caller {number}"
                if kind == "Embed":
                    await self._call("Embed", embed.Embed(embed_pb2.EmbedRequest(texts=[text]), timeout=_TIMEOUT_S))
                elif kind == "Rerank":
                    ask = rerank_pb2.RerankRequest(query=text, documents=[f"{text} a", f"{text} b"])
                    await self._call("Rerank", rerank.Rerank(ask, timeout=_TIMEOUT_S))
                else:
                    await self._call("Search", retrieval.Search(search(text), timeout=_TIMEOUT_S))
                await asyncio.sleep(_PAUSE_S)

    async def _call(self, name: str, call: object) -> None:
        loop = asyncio.get_running_loop()
        began, failure = loop.time(), None
        try:
            answer = await call  # type: ignore[misc]
            if getattr(answer, "degraded", None):
                failure = f"degraded: {answer.degradations}"
        except grpc.aio.AioRpcError as error:
            failure = f"{error.code().name}: {error.details()}"
        self.calls.append(Call(name, began, loop.time() - began, failure))
        self._more.set()


def search(text: str) -> retrieval_pb2.SearchRequest:
    """A search over three documents of its own."""
    documents = [retrieval_pb2.Document(id=str(i), text=f"{text}, document {i}") for i in range(3)]
    return retrieval_pb2.SearchRequest(query=text, documents=retrieval_pb2.InlineDocuments(documents=documents))
