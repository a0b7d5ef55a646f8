"""Streams of documents into collections. Unchanged documents are not embedded again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence, Set
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from google.rpc import status_pb2

from gateway.index.collection import Collection
from gateway.index.commands import ChangedMeanwhileError, Known, Write
from gateway.index.documents import Digest, Document, Outcome
from gateway.index.errors import wrong_model
from gateway.index.store import Store
from gateway.models.cached_model import WrongModelError
from gateway.models.embedder import Embedder
from services.api.backend import EmbeddedText
from services.api.chunks import chunks, estimated_tokens
from services.api.embed import StreamSettings
from services.api.options import EmbedOptions
from services.api.retry import Outage, is_for_item, retry_while_unavailable
from services.runtime.errors import NotFound, NotReady, Problem, UpstreamUnavailable, to_status, with_field
from services.runtime.streams import in_completion_order, until
from winnow.common.v1 import common_pb2

_WRITE_TRIES = 5


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """The result of a document: an outcome, or the error for which it is not stored."""

    id: str
    outcome: Outcome | None = None
    error: status_pb2.Status | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PendingDocument:
    """A document of the stream. `path`: its field path in its message. With an `error`, it is invalid."""

    document: Document
    path: str
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Documents with distinct ids, to be written `after` all earlier chunks that contain one of the ids."""

    group: Sequence[PendingDocument]
    after: Set[asyncio.Event]
    done: asyncio.Event


@dataclass(frozen=True, slots=True)
class _Outages:
    """How long a stream retries while one of its upstreams is unreachable."""

    index: Outage
    workers: Outage


class Upserter:
    """Writes streams of documents. `stopping`: when set, streams finish what they accepted and end with NotReady."""

    def __init__(self, embedder: Embedder, store: Store, stream: StreamSettings, stopping: asyncio.Event) -> None:
        self._embedder = embedder
        self._store = store
        self._stream = stream
        self._stopping = stopping

    async def upsert(
        self, collection: Collection, messages: AsyncIterator[Sequence[PendingDocument]]
    ) -> AsyncGenerator[list[UpsertResult], None]:
        """Results for groups of documents, in completion order, one for each document.

        Documents with the same id are written in their order. An exception of `messages` is raised after the results of
        all earlier documents. Precondition if the workers have another model than the collection.
        """
        window, retry_for_s = self._stream.window(), self._stream.retry_for_s
        outages = _Outages(index=Outage(retry_for_s), workers=Outage(retry_for_s))

        async def work(chunk: _Chunk) -> list[UpsertResult]:
            try:
                for earlier in chunk.after:
                    await earlier.wait()
                return await self._group(collection, chunk.group, outages)
            finally:
                chunk.done.set()

        async with aclosing(in_completion_order(self._chunks(messages, window), work, window)) as answers:
            async for results in answers:
                yield results

    async def _chunks(
        self, messages: AsyncIterator[Sequence[PendingDocument]], window: int
    ) -> AsyncIterator[tuple[_Chunk, int]]:
        writing: dict[str, asyncio.Event] = {}  # the last chunk in flight that contains an id
        async for message in until(self._stopping, messages):
            tokens = [estimated_tokens(pending.document.text) for pending in message]
            keys = [pending.document.id for pending in message]
            for _, group, cost in chunks(message, tokens, window, keys):
                done = asyncio.Event()
                writing = {id_: event for id_, event in writing.items() if not event.is_set()}
                ids = [pending.document.id for pending in group]
                after = {writing[id_] for id_ in ids if id_ in writing}
                writing.update(dict.fromkeys(ids, done))
                yield _Chunk(group, after, done), cost
        if self._stopping.is_set():
            raise NotReady("draining")

    async def _group(
        self, collection: Collection, group: Sequence[PendingDocument], outages: _Outages
    ) -> list[UpsertResult]:
        """Results of documents with distinct ids."""
        refused = [
            UpsertResult(pending.document.id, error=to_status(pending.error)) for pending in group if pending.error
        ]
        good = [pending for pending in group if not pending.error]
        try:
            return refused + (await self._store_all(collection, good, outages) if good else [])
        except Problem as problem:
            if not is_for_item(problem):
                raise
            return refused + [UpsertResult(pending.document.id, error=to_status(problem)) for pending in good]

    async def _store_all(
        self, collection: Collection, group: Sequence[PendingDocument], outages: _Outages
    ) -> list[UpsertResult]:
        results: dict[str, UpsertResult] = {}
        left = list(group)
        for _ in range(_WRITE_TRIES):
            ids = [pending.document.id for pending in left]
            try:
                known = await retry_while_unavailable(lambda ids=ids: self._store.look(collection, ids), outages.index)  # type: ignore[misc]
            except NotFound as gone:  # the collection was removed during the stream
                results.update((id_, UpsertResult(id_, error=to_status(gone))) for id_ in ids)
                break
            writes = await self._writes(collection, left, known, results, outages)
            outcomes = await self._write(collection, writes, outages)
            for write, outcome in zip(writes, outcomes, strict=True):
                id_ = write.document.id
                match outcome:
                    case Outcome():
                        results[id_] = UpsertResult(id_, outcome, truncated=write.digest.truncated)
                    case Problem():
                        results[id_] = UpsertResult(id_, error=to_status(outcome))
                    case ChangedMeanwhileError():
                        pass  # look it up again
            left = [pending for pending in left if pending.document.id not in results]
            if not left:
                break
        else:
            raise UpstreamUnavailable("index", "has concurrent changes of the same documents")
        return [results[pending.document.id] for pending in group]

    async def _writes(
        self,
        collection: Collection,
        group: Sequence[PendingDocument],
        known: dict[str, Known],
        results: dict[str, UpsertResult],
        outages: _Outages,
    ) -> list[Write]:
        """What has to be written. Documents that are unchanged, or that cannot be embedded, are put into `results`."""
        writes: list[Write] = []
        new: list[tuple[PendingDocument, Digest]] = []
        for pending in group:
            document, digest = pending.document, Digest.of(pending.document)
            seen = known[document.id]
            old = seen.digest if seen.whole else None  # a document that has lost a part is written again
            if old is not None and old.same(digest) and self._store.confirms:
                writes.append(Write(document, old, None, seen))
            elif old is not None and old.same(digest):
                results[document.id] = UpsertResult(document.id, Outcome.UNCHANGED, truncated=old.truncated)
            elif old is not None and old.text == digest.text:
                writes.append(Write(document, replace(digest, truncated=old.truncated), None, seen))
            else:
                new.append((pending, digest))
        if not new:
            return writes
        texts, options = [pending.document.text for pending, _ in new], EmbedOptions(priority=common_pb2.PRIORITY_BULK)
        model = collection.model.fingerprint
        try:
            embedded = await retry_while_unavailable(
                lambda: self._embedder.embed(texts, options, None, fingerprint=model), outages.workers
            )
        except WrongModelError as error:
            raise wrong_model(collection, error.serving) from None
        rows = iter(embedded.rows(collection.dimensions))
        for (pending, digest), item in zip(new, embedded.items, strict=True):
            if isinstance(item, EmbeddedText):
                changed = replace(digest, truncated=item.truncated)
                writes.append(Write(pending.document, changed, next(rows), known[pending.document.id]))
            else:
                id_ = pending.document.id
                results[id_] = UpsertResult(id_, error=with_field(item.error, f"{pending.path}.text"))
        return writes

    async def _write(
        self, collection: Collection, writes: Sequence[Write], outages: _Outages
    ) -> list[Outcome | Problem | ChangedMeanwhileError]:
        """Writes; retries for a while if the index cannot be reached, since a write may be repeated."""
        outcomes: dict[int, Outcome | Problem | ChangedMeanwhileError] = {}

        async def once() -> None:
            left = [position for position in range(len(writes)) if not isinstance(outcomes.get(position), Outcome)]
            answers = await self._store.write(collection, [writes[position] for position in left])
            outcomes.update(zip(left, answers, strict=True))
            for answer in answers:
                if isinstance(answer, UpstreamUnavailable):
                    raise answer

        with suppress(UpstreamUnavailable):  # it is the result of each document that it concerns
            await retry_while_unavailable(once, outages.index)
        return [outcomes[position] for position in range(len(writes))]
