"""EmbedService.Embed and GetModel at the wire, over a real engine."""

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from safetensors.torch import load_file, save_file

from services.api.vectors import decode
from services.engine.packing.packing import Packed
from tests.support.serving import details, rich_status
from tests.support.tiny import (
    MAX_TOKENS,
    ServedWorker,
    Tiny,
    embedding,
    held,
    slowed,
    until_calls,
    until_idle,
    until_queued,
)
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

CODES = grpc.StatusCode
TEXTS = ["the capital of China", "", "gravity", "yes <|im_end|> no", "what which where " * 20]


@pytest.fixture
async def worker(tiny: Tiny) -> AsyncIterator[ServedWorker]:
    async with embedding(tiny) as served:
        yield served


@pytest.fixture
def stub(worker: ServedWorker) -> "embed_pb2_grpc.EmbedServiceAsyncStub":
    return embed_pb2_grpc.EmbedServiceStub(worker.channel)


def request(texts: Sequence[str] = ("gravity",), **fields: Any) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=texts, **fields)


async def vectors(stub: "embed_pb2_grpc.EmbedServiceAsyncStub", texts: list[str], **fields: Any) -> np.ndarray:
    response = await stub.Embed(request(texts, **fields), timeout=30)
    return np.stack([decode(result.embedding) for result in response.results])


def problem(status: status_pb2.Status) -> tuple[int, list[str]]:
    """Code and fields of one item's error."""
    (bad,) = details(status, error_details_pb2.BadRequest)
    return status.code, [violation.field for violation in bad.field_violations]


def assert_full(error: grpc.aio.AioRpcError) -> None:
    """The replica is full, and says when to come back, to people and to retry policies."""
    seen = rich_status(error)
    assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "REPLICA_FULL")
    delay = seen.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
    assert delay > 0
    assert abs(int(seen.trailers["grpc-retry-pushback-ms"]) - delay) <= 1


async def test_answers_are_aligned_and_complete(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    response = await stub.Embed(request(TEXTS), timeout=30)
    assert len(response.results) == len(TEXTS)
    for result in response.results:
        assert result.WhichOneof("outcome") == "embedding"
        assert (result.embedding.encoding, result.embedding.dimensions) == (embed_pb2.ENCODING_FLOAT32, 64)
        assert np.linalg.norm(decode(result.embedding)) == pytest.approx(1, abs=1e-6)
        assert not result.truncated
        assert not result.cache_hit
    assert [result.tokens for result in response.results][1] == 1  # the end token alone
    assert response.usage.input_tokens == sum(result.tokens for result in response.results)
    assert (response.usage.cache_misses, response.usage.cache_hits) == (5, 0)
    assert 0 < response.timings.forward_ms <= response.timings.total_ms
    assert response.model == (await stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)).model


async def test_a_text_alone_and_among_others_gets_the_same_vector(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    together = await vectors(stub, TEXTS)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose((await vectors(stub, [text]))[0], together[index], atol=1e-5)


async def test_get_model(stub: "embed_pb2_grpc.EmbedServiceAsyncStub", worker: ServedWorker) -> None:
    model = await stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)
    assert (model.dimensions, model.min_dimensions, model.max_tokens, model.dtype) == (64, 32, MAX_TOKENS, "float32")
    assert model.model.name == "embed"
    assert len(model.model.fingerprint) >= 16
    assert model.default_instruction.startswith("Given a web search query")
    limits = model.limits
    assert (limits.max_items, limits.max_text_bytes, limits.max_message_bytes) == (2048, 4 << 20, 64 << 20)


async def test_input_types_and_their_default_instructions(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    async def one(input_type: int, instruction: str | None = None) -> np.ndarray:
        return next(iter(await vectors(stub, ["gravity"], input_type=input_type, instruction=instruction)))

    document, query, symmetric = [await one(kind) for kind in (1, 2, 3)]
    web = "Given a web search query, retrieve relevant passages that answer the query"
    similar = "Retrieve semantically similar text"
    np.testing.assert_array_equal(document, await one(embed_pb2.INPUT_TYPE_UNSPECIFIED))
    np.testing.assert_allclose(query, await one(embed_pb2.INPUT_TYPE_QUERY, web), atol=1e-5)
    np.testing.assert_allclose(query, await one(embed_pb2.INPUT_TYPE_SYMMETRIC, web), atol=1e-5)
    np.testing.assert_allclose(symmetric, await one(embed_pb2.INPUT_TYPE_QUERY, similar), atol=1e-5)
    np.testing.assert_allclose(query, await one_document(stub, f"Instruct: {web}\nQuery:gravity"), atol=1e-5)
    assert np.abs(document - query).max() > 0.01
    assert np.abs(symmetric - query).max() > 0.01


async def one_document(stub: "embed_pb2_grpc.EmbedServiceAsyncStub", text: str) -> np.ndarray:
    return next(iter(await vectors(stub, [text])))


@pytest.mark.parametrize("dimensions", [32, 33, 63, 64])
async def test_dimensions_cut_then_normalise(stub: "embed_pb2_grpc.EmbedServiceAsyncStub", dimensions: int) -> None:
    full = (await vectors(stub, ["gravity"]))[0]
    cut = (await vectors(stub, ["gravity"], dimensions=dimensions))[0]
    np.testing.assert_allclose(cut, full[:dimensions] / np.linalg.norm(full[:dimensions]), atol=1e-6)


@pytest.mark.parametrize("encoding", [2, 3, 4, 5])
async def test_encodings_tell_the_same_vector(stub: "embed_pb2_grpc.EmbedServiceAsyncStub", encoding: int) -> None:
    plain = await vectors(stub, TEXTS)
    response = await stub.Embed(request(TEXTS, encoding=encoding), timeout=30)
    assert {result.embedding.encoding for result in response.results} == {encoding}
    coded = np.stack([decode(result.embedding) for result in response.results])
    least = {2: 0.99999, 3: 0.999, 4: 0.6, 5: 0.9999999}[encoding]
    assert (np.einsum("nd,nd->n", plain, coded) / np.linalg.norm(coded, axis=1) > least).all()


WRONG = [
    ({"texts": []}, ["texts"]),
    ({"texts": ["x"] * 2049}, ["texts"]),
    ({"texts": ["x"] * 100_000}, ["texts"]),
    ({"dimensions": 0}, ["dimensions"]),
    ({"dimensions": 31}, ["dimensions"]),
    ({"dimensions": 65}, ["dimensions"]),
    ({"max_tokens": 7}, ["max_tokens"]),
    ({"max_tokens": MAX_TOKENS + 1}, ["max_tokens"]),
    ({"input_type": 99}, ["input_type"]),
    ({"encoding": 99}, ["encoding"]),
    ({"encoding": -1}, ["encoding"]),
    ({"truncation": 99}, ["truncation"]),
    ({"priority": 99}, ["priority"]),
    ({"instruction": "Find."}, ["instruction"]),
    ({"instruction": "Find.", "input_type": embed_pb2.INPUT_TYPE_DOCUMENT}, ["instruction"]),
    ({"instruction": "", "input_type": embed_pb2.INPUT_TYPE_QUERY}, ["instruction"]),
    ({"instruction": " \n", "input_type": embed_pb2.INPUT_TYPE_SYMMETRIC}, ["instruction"]),
    ({"instruction": "word " * 1000, "input_type": embed_pb2.INPUT_TYPE_QUERY}, ["instruction"]),
    ({"texts": [], "dimensions": 0, "encoding": 99}, ["dimensions", "encoding", "texts"]),
]


@pytest.mark.parametrize(("fields", "named"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_request_names_its_fields(
    stub: "embed_pb2_grpc.EmbedServiceAsyncStub", fields: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Embed(request(**fields), timeout=30)
    seen = rich_status(error.value)
    assert (seen.code, seen.reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    assert sorted(seen.fields) == named
    assert seen.status.message


async def test_a_megabyte_of_text_is_cut_and_said_so(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    long = "what is gravity? " * (1 << 16)
    assert len(long) > 1 << 20
    response = await stub.Embed(request(["gravity", long]), timeout=50)
    first, cut = response.results
    assert (first.truncated, cut.truncated, cut.tokens) == (False, True, MAX_TOKENS)
    np.testing.assert_allclose(decode(first.embedding), await one_document(stub, "gravity"), atol=1e-5)
    head = await one_document(stub, long[:4000])
    np.testing.assert_allclose(decode(cut.embedding), head, atol=1e-5)


async def test_truncation_at_the_start_keeps_the_tail(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    texts = ["gravity " * 500 + "x " * 500, "capital " * 500 + "x " * 500]
    start = await vectors(stub, texts, truncation=common_pb2.TRUNCATION_START)
    end = await vectors(stub, texts, truncation=common_pb2.TRUNCATION_END)
    np.testing.assert_allclose(start[0], start[1], atol=1e-5)
    assert np.abs(end[0] - end[1]).max() > 0.01
    np.testing.assert_array_equal(end, await vectors(stub, texts))


async def test_too_long_under_error_fails_alone(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    texts = ["gravity", "word " * 2000, "capital", "word " * 2000]
    response = await stub.Embed(request(texts, truncation=common_pb2.TRUNCATION_ERROR), timeout=30)
    assert [result.WhichOneof("outcome") for result in response.results] == ["embedding", "error"] * 2
    for index in (1, 3):
        assert problem(response.results[index].error) == (CODES.INVALID_ARGUMENT.value[0], [f"texts[{index}]"])
    np.testing.assert_allclose(
        [decode(response.results[index].embedding) for index in (0, 2)],
        await vectors(stub, ["gravity", "capital"]),
        atol=1e-5,
    )
    assert response.usage.cache_misses == 2


async def test_a_text_that_is_too_long_tells_how_many_tokens_it_has(
    stub: "embed_pb2_grpc.EmbedServiceAsyncStub",
) -> None:
    wanted = request(["gravity", "word " * 2000], truncation=common_pb2.TRUNCATION_ERROR)
    short, long = (response := await stub.Embed(wanted, timeout=30)).results
    assert long.HasField("error")
    assert long.tokens > MAX_TOKENS
    assert response.usage.input_tokens == short.tokens  # only what was computed


async def test_a_text_over_the_byte_limit_fails_alone(tiny: Tiny) -> None:
    async with embedding(tiny, max_text_bytes=8) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        texts = ["gravity", "gravity!!", "éééé", "ééééé", "x"]
        response = await stub.Embed(request(texts, truncation=common_pb2.TRUNCATION_ERROR), timeout=30)
        failed = {i: problem(r.error) for i, r in enumerate(response.results) if r.HasField("error")}
        assert failed == {i: (3, [f"texts[{i}]"]) for i in (1, 3)}
        np.testing.assert_allclose(decode(response.results[2].embedding), await one_document(stub, "éééé"), atol=1e-5)
        alone = await stub.Embed(request(["much too long"]), timeout=30)
        assert alone.results[0].HasField("error")
        assert alone.usage.input_tokens == 0


async def test_control_tokens_in_a_text_stay_text(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    response = await stub.Embed(request(["<|im_end|>", "<|endoftext|>", "x"]), timeout=30)
    tokens = [result.tokens for result in response.results]
    assert tokens[2] == 2
    assert min(tokens[:2]) > 3  # several pieces of text and the end token, not one control token


async def test_a_deadline_that_cannot_be_met_is_refused_before_any_work(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    engine = worker.worker.engine()
    texts = [f"{i} gravity attracts" for i in range(1000)]
    slow = engine.stats().tokens_per_second / 50
    slowed(worker.worker, slow)  # 20 ms become a second
    with held(worker.worker):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Embed(request(texts), timeout=0.5)
        seen = rich_status(error.value)  # details: the server said it, not the client's own clock
        assert (seen.code, seen.reason) == (CODES.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        assert engine.stats().queued_tokens == 0


async def test_a_full_queue_refuses_with_a_delay_and_serves_what_it_took(tiny: Tiny) -> None:
    async with embedding(tiny, queue_tokens=600, batch_tokens=64) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        with held(served.worker):
            texts = [f"gravity {i}" for i in range(100)]
            accepted = stub.Embed(request(texts), timeout=30)
            await until_queued(served.worker, 400)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Embed(request(["x y z"] * 100), timeout=30)
            assert_full(error.value)
        assert len((await accepted).results) == 100


async def test_too_long_a_queue_for_the_deadline_sends_the_call_elsewhere(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    """It could be in time on an idle replica, so it is not the deadline that is wrong."""
    with held(worker.worker):
        first = stub.Embed(request(), timeout=60)
        await until_queued(worker.worker)
        waiting = stub.Embed(request(["gravity attracts two bodies"] * 100), timeout=60)
        await until_queued(worker.worker, 300)
        slowed(worker.worker, 100.0)  # several seconds wait
        for timeout in (5.0, 1.0):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Embed(request(), timeout=timeout)
            assert_full(error.value)
    assert len((await first).results) == 1
    assert len((await waiting).results) == 100


async def test_without_a_deadline_the_queue_is_bounded_in_seconds(tiny: Tiny) -> None:
    async with embedding(tiny, queue_seconds=2.0) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        with held(served.worker):
            first = stub.Embed(request())
            await until_queued(served.worker)
            slowed(served.worker, 100.0)
            waiting = stub.Embed(request(["gravity attracts two bodies"] * 100))  # more than the bound, by itself
            await until_queued(served.worker, 300)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Embed(request())
            seen = rich_status(error.value)
            assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "REPLICA_FULL")
            bulk = stub.Embed(request(priority=common_pb2.PRIORITY_BULK))  # waits as long as it has time
            await until_calls(served.lifecycle, 3)
        assert [len((await call).results) for call in (first, waiting, bulk)] == [1, 100, 1]


async def test_what_could_not_be_begun_in_time_is_told_to_go_elsewhere_as_well(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    """It was taken into the queue, and leaves it when the estimate says that it will be late behind the others."""
    engine = worker.worker.engine()
    with held(worker.worker):
        first = stub.Embed(request(), timeout=60)
        await until_queued(worker.worker)
        waiting = stub.Embed(request(["gravity attracts two bodies"] * 100), timeout=60)
        await until_queued(worker.worker, 300)
        late = stub.Embed(request(["the capital of China"]), timeout=20)
        await until_calls(worker.lifecycle, 3)
        slowed(worker.worker, 20.0)
        engine._throughput.measured = lambda tokens, seconds: None
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await late
    seen = rich_status(error.value)
    assert (seen.code, seen.reason) == (CODES.UNAVAILABLE, "REPLICA_FULL")
    assert seen.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert len((await first).results) == 1
    assert len((await waiting).results) == 100


async def test_a_request_larger_than_the_queue_is_told_to_split(tiny: Tiny) -> None:
    async with embedding(tiny, queue_tokens=300, batch_tokens=64) as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(served.channel).Embed(request(["x y z"] * 400), timeout=30)
    seen = rich_status(error.value)
    assert (seen.code, seen.fields) == (CODES.INVALID_ARGUMENT, ["texts"])
    assert "split" in seen.status.message


async def test_what_a_caller_cancels_is_dropped(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    with held(worker.worker):
        running = stub.Embed(request(["first"]), timeout=30)
        await until_queued(worker.worker)
        queued = stub.Embed(request(["word " * 200] * 20), timeout=30)
        await until_queued(worker.worker, 2000)
        queued.cancel()
        await until_idle(worker.worker)
    assert len((await running).results) == 1


async def test_a_broken_device_ends_the_process_and_says_so(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    def launch(packed: Packed) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    worker.worker.engine()._runner._device.launch = launch
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Embed(request(), timeout=30)
    seen = rich_status(error.value)
    assert (seen.code, seen.reason) == (CODES.INTERNAL, "INTERNAL")
    assert "CUDA" not in str(error.value)
    await worker.lifecycle.stopping.wait()
    assert worker.lifecycle.phase.value == "broken"


async def test_a_vector_of_zeros_is_no_unit_vector(tiny: Tiny, tmp_path: Path) -> None:
    """Its first 32 values are all zero: none of that width can be made, one of the whole width can."""
    folder = shutil.copytree(tiny.embed, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"][:32] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    async with embedding(Tiny(folder, tiny.rerank)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        whole = await stub.Embed(request(["alpha"]), timeout=30)
        assert decode(whole.results[0].embedding)[32:].any()
        narrow = await stub.Embed(request(["alpha", "beta"], dimensions=32), timeout=30)
        assert [result.error.code for result in narrow.results] == [grpc.StatusCode.INTERNAL.value[0]] * 2
