"""Strangers: seeded attacks on a port, each of which returns how it was answered.

An answer is a gRPC code ("INVALID_ARGUMENT"), with its message if it is one of `FAULTS`, or what HTTP/2 says below it
("reset 8", "goaway 1", "closed").
"""

import asyncio
import gzip
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support import http2
from tests.support.http2 import Connection, connection
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_TIMEOUT_S = 20.0
# Long enough for an answer, short for one that never comes: what a server ignores is no answer to wait for.
_SILENCE_S = 1.0

EMBED = "/winnow.embed.v1.EmbedService/Embed"
EMBED_STREAM = "/winnow.embed.v1.EmbedService/EmbedStream"

_EMBED = [
    (
        EMBED,
        embed_pb2.EmbedRequest(
            texts=["a", "some words"], dimensions=64, instruction="find", input_type=embed_pb2.INPUT_TYPE_QUERY
        ),
    ),
    (EMBED_STREAM, embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id="1", text="words")])),
    ("/winnow.embed.v1.EmbedService/GetModel", embed_pb2.GetModelRequest()),
]
_RERANK = [
    ("/winnow.rerank.v1.RerankService/Rerank", rerank_pb2.RerankRequest(query="q", documents=["a", "b"], top_n=1)),
    ("/winnow.rerank.v1.RerankService/GetModel", rerank_pb2.GetModelRequest()),
]
_RETRIEVAL = [
    ("Search", pb.SearchRequest(query="q", documents=pb.InlineDocuments(documents=[pb.Document(text="a")]))),
    ("Search", pb.SearchRequest(query="q", collection=pb.CollectionSource(name="docs", filter=".a > 1"), top_n=3)),
    ("UpsertDocuments", pb.UpsertDocumentsRequest(collection="docs", documents=[pb.Document(id="1", text="a")])),
    ("DeleteDocuments", pb.DeleteDocumentsRequest(collection="docs", ids=["1"])),
    ("GetDocuments", pb.GetDocumentsRequest(collection="docs", ids=["1", "2"])),
    ("CreateCollection", pb.CreateCollectionRequest(name="docs", dimensions=64, shards=2)),
    ("GetCollection", pb.GetCollectionRequest(name="docs")),
    ("ListCollections", pb.ListCollectionsRequest(page_size=3, page_token="x")),
    ("DeleteCollection", pb.DeleteCollectionRequest(name="docs")),
    ("SetAlias", pb.SetAliasRequest(alias="alias", collection="docs")),
    ("DeleteAlias", pb.DeleteAliasRequest(alias="alias")),
]
_COMMON = [
    ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="winnow.embed.v1.EmbedService")),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="winnow.embed.v1.EmbedService"),
    ),
]
METHODS: dict[str, list[tuple[str, Message]]] = {
    "gateway": [
        *_EMBED,
        *_RERANK,
        *((f"/winnow.retrieval.v1.RetrievalService/{name}", request) for name, request in _RETRIEVAL),
        *_COMMON,
    ],
    "embed": [*_EMBED, *_COMMON],
    "rerank": [*_RERANK, *_COMMON],
}

FAULTS = ("CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED", "OUT_OF_RANGE", "DATA_LOSS", "PERMISSION_DENIED")
"""Codes that no server of this project gives a stranger. Their message is part of the answer."""

Attack = Callable[[str, random.Random], Awaitable[Counter[str]]]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, lost, doubled or added."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                del changed[at : at + rng.randint(1, 4)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                changed[at:at] = changed[: rng.randint(0, 32)]
            case 4:
                changed[at:at] = bytes((rng.choice((0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF)),)) * rng.randint(1, 12)
            case 5:
                changed = changed[:at]
    return bytes(changed)


_TEXTS = [
    "", " ", "\0", "\ufeff", "\U0010ffff", "\u202e", "\ud7ff", "x" * 3000, "é" * 513, "null", "NaN", "0", "-1",
    "[" * 5000, "{" * 5000, "(" * 4000, '{"a":' * 3000, '{"a": ' + "9" * 5000 + "}", '{"a": 1e400}',
    '{"a": "\\ud800"}', '{"a": NaN}', '{"a": -Infinity}', '{"\\u0000": 1}', '{"a": [1, [2]], "a": {"b": null}}',
    "not " * 1000 + ".a", "-" * 4000, ".a == 1 and .b", ".a in [" + "1," * 1500 + "1]", ".a == " + "9" * 4000,
    ".a ** .a ** .a", "." + "a" * 4000, "'", '"\\', "docs", "alias", "*", "../..", "{docs}", "a\r\nb", "$(sleep 1)",
    "<|im_end|>", "winnow.embed.v1.EmbedService",
]  # fmt: skip


def nasty(request: Message, rng: random.Random) -> bytes:
    """The request with some of its fields set to values that nobody should send."""
    changed = type(request)()
    changed.CopyFrom(request)
    for _ in range(rng.randint(1, 3)):
        _spoil(changed, rng)
    return changed.SerializeToString()


def _spoil(message: Message, rng: random.Random) -> None:
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    if field.message_type is not None:
        inner = getattr(message, field.name)
        _spoil(rng.choice((*inner, inner.add())) if field.is_repeated else inner, rng)
        return
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            value: object = rng.choice(_TEXTS)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            value = rng.choice((math.nan, math.inf, -math.inf, 1e308, -0.0, 5e-324))
        case FieldDescriptor.CPPTYPE_BOOL:
            value = rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            value = rng.choice((0, 1, 31, 32, 33, 2**31, 2**32 - 1))
        case _:
            value = rng.choice((-(2**31), -1, 0, 1, 7, 2**31 - 1))
    if field.is_repeated:
        getattr(message, field.name).extend([value] * rng.choice((1, 2, 40)))
    else:
        setattr(message, field.name, value)


async def fuzz(part: str, address: str, rng: random.Random, requests: int, at_once: int = 32) -> Counter[str]:
    """Requests of every method, mutated or with nasty values. A stream takes them as its only message."""
    seen: Counter[str] = Counter()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    prepared = []
    for _ in range(requests):
        method, request = rng.choice(METHODS[part])
        data = request.SerializeToString()
        way = rng.random()
        prepared.append((method, data if way < 0.1 else nasty(request, rng) if way < 0.5 else mutated(data, rng)))
    todo = iter(prepared)
    async with grpc.aio.insecure_channel(address, options) as channel:

        async def one() -> None:
            for method, data in todo:
                stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method, None, None)
                call = stub(data, timeout=_TIMEOUT_S)
                try:
                    async for _ in call:
                        pass
                    seen["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                    seen[f"{code}: {error.details()} ({method} {data!r})" if code in FAULTS else code] += 1

        await asyncio.gather(*(one() for _ in range(at_once)))
    return seen


def _answers(answered: Connection, streams: Iterable[int]) -> Counter[str]:
    seen: Counter[str] = Counter()
    for stream in streams:
        if stream in answered.statuses:
            code = _CODES[answered.statuses[stream]]
            seen[f"{code}: {answered.messages[stream]}" if code in FAULTS else code] += 1
        elif stream in answered.resets:
            seen[f"reset {answered.resets[stream]}"] += 1
        elif answered.goaway is not None:
            seen[f"goaway {answered.goaway}"] += 1
        else:
            seen["closed" if answered.closed else "silence"] += 1
    return seen


async def _exchange(address: str, *sent: bytes, streams: Iterable[int] = (1,)) -> Counter[str]:
    """Sends the frames and waits for an answer on each stream."""
    streams = list(streams)
    async with connection(address) as raw:
        await raw.send(*sent)
        try:
            async with asyncio.timeout(_SILENCE_S):
                await raw.answered(streams)
        except TimeoutError:
            pass
        return _answers(raw, streams)


def call(
    method: str, data: bytes, *headers: tuple[str, bytes], stream: int = 1, content_type: bytes = b"application/grpc"
) -> bytes:
    """The frames of one whole call."""
    block = http2.call_headers(method, *headers, content_type=content_type)
    opening = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
    parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
    body = [http2.frame(http2.DATA, 0, stream, part) for part in parts[:-1]]
    return b"".join([opening, *body, http2.frame(http2.DATA, http2.END_STREAM, stream, parts[-1])])


REQUEST = embed_pb2.EmbedRequest(texts=["stranger"]).SerializeToString()


async def random_bytes(address: str, rng: random.Random) -> Counter[str]:
    """No protocol at all, or none after the preface."""
    start = rng.choice((b"", http2.hello()))
    return await _exchange(address, start + rng.randbytes(rng.randint(1, 4096)))


async def truncated(address: str, rng: random.Random) -> Counter[str]:
    """A call that breaks off; the connection is closed at once."""
    whole = http2.hello() + call(EMBED, http2.message(REQUEST))
    async with connection(address) as raw:
        await raw.send(whole[: rng.randrange(1, len(whole))])
    return Counter({"closed": 1})


async def mangled(address: str, rng: random.Random) -> Counter[str]:
    """A call with changed bytes, in headers, lengths and data alike."""
    return await _exchange(address, http2.hello() + mutated(call(EMBED, http2.message(REQUEST)), rng))


async def other_protocols(address: str, rng: random.Random) -> Counter[str]:
    """A TLS handshake, or HTTP/1.1, on a plain port."""
    handshake = bytes.fromhex("160301020001000001fc0303") + rng.randbytes(508)
    page = b"POST /winnow.embed.v1.EmbedService/Embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    return await _exchange(address, rng.choice((handshake, page, b"GET / HTTP/1.0\r\n\r\n")))


async def frame_floods(address: str, rng: random.Random) -> Counter[str]:
    """SETTINGS, PING, empty DATA, PRIORITY or CONTINUATION by the hundred, then a good call."""
    opening = http2.frame(http2.HEADERS, 0, 1, http2.call_headers(EMBED))
    flood = rng.choice(
        (
            [http2.settings(_4=rng.randrange(1 << 16)) for _ in range(500)],
            [http2.frame(http2.PING, payload=rng.randbytes(8)) for _ in range(500)],
            [http2.frame(http2.PRIORITY, stream=2 * n + 1, payload=b"\0\0\0\0\1") for n in range(500)],
            [opening, *(http2.frame(http2.CONTINUATION, 0, 1, http2.literals([(f"x-{n}", b"y")])) for n in range(900))],
        )
    )
    return await _exchange(address, http2.hello(), *flood, call(EMBED, http2.message(REQUEST), stream=1001),
                           streams=(1001,))  # fmt: skip


async def rapid_reset(address: str, rng: random.Random) -> Counter[str]:
    """CVE-2023-44487: calls that are cancelled as they are made."""
    cancel = (8).to_bytes(4, "big")
    streams = range(1, 400, 2)
    frames = [
        call(EMBED, http2.message(REQUEST), stream=stream) + http2.frame(http2.RST_STREAM, 0, stream, cancel)
        for stream in streams
    ]
    return await _exchange(address, http2.hello(), *frames, call(EMBED, http2.message(REQUEST), stream=401),
                           streams=(401,))  # fmt: skip


async def compressed(address: str, rng: random.Random) -> Counter[str]:
    """What is no gzip, is cut, unpacks to far more than the limit, or claims to be packed and is not."""
    packed = gzip.compress(REQUEST)
    data, encoding = rng.choice(
        (
            (rng.randbytes(100), b"gzip"),
            (b"\x1f\x8b" + rng.randbytes(100), b"gzip"),
            (packed[: rng.randrange(len(packed))], b"gzip"),
            (bomb(), b"gzip"),
            (packed, b"deflate"),
            (packed, b"brotli"),
            (REQUEST, b"identity"),
        )
    )
    method = rng.choice((EMBED, METHODS["embed"][2][0]))
    return await _exchange(
        address, http2.hello(), call(method, http2.message(data, compressed=1), ("grpc-encoding", encoding))
    )


@cache
def bomb() -> bytes:
    """48 MiB of zeros in 48 KB, which flow control lets through at once."""
    return gzip.compress(bytes(48 << 20), mtime=0)


async def wrong_headers(address: str, rng: random.Random) -> Counter[str]:
    """Content types, metadata, timeouts and methods that gRPC does not allow."""
    kind, method = b"application/grpc", EMBED
    headers: tuple[tuple[str, bytes], ...] = ()
    match rng.randrange(5):
        case 0:
            kind = rng.choice(
                (b"", b"text/html", b"application/json", b"application/grpc+json", rng.randbytes(9).hex().encode())
            )
        case 1:
            timeout = rng.choice((b"", b"-1S", b"abc", b"99999999999H", b"1", b"0n", b"1.5S", b"\xff\xff"))
            headers = (("grpc-timeout", timeout),)
        case 2:
            headers = (rng.choice((
                ("x-bin", b"!!! no base64"), ("Upper-Case", b"x"), ("x-text", b"\x00\xff\n"), ("", b"x"), (":z", b"x"),
                ("traceparent", b"00-" + b"z" * 50), ("baggage", b"a=" + b"%" * 900), ("authorization", b"\xff\xfe"),
                ("connection", b"close"), ("x-large", b"y" * 20_000), ("host", b"other"), ("tracestate", b"\xff=,=,")
            )),)  # fmt: skip
        case 3:
            method = rng.choice(
                ("/", "", "*", "/nobody/Nothing", "/winnow.embed.v1.EmbedService/", "//", "/" + "x" * 5000)
            )
        case 4:
            headers = tuple((f"x-{n}", rng.randbytes(8).hex().encode()) for n in range(rng.choice((10, 100, 500))))
    return await _exchange(address, http2.hello(), call(method, http2.message(REQUEST), *headers, content_type=kind))


async def wrong_bodies(address: str, rng: random.Random) -> Counter[str]:
    """Messages that are cut, missing, too many, or announced larger than they are or may be."""
    whole = http2.message(REQUEST)
    body = rng.choice((
        b"", b"\0", whole[:-1], whole + whole, whole + b"\0", http2.message(REQUEST, length=0xFFFFFFFF),
        http2.message(REQUEST, length=200 << 20), http2.message(REQUEST, compressed=7), http2.message(b"\0" * 70_000),
    ))  # fmt: skip
    method, _ = rng.choice(METHODS["embed"])
    return await _exchange(address, http2.hello(), call(method, body))


async def broken_http2(address: str, rng: random.Random) -> Counter[str]:
    """Frames that HTTP/2 forbids: streams that are closed, even, unknown or zero, windows that overflow, sizes."""
    good = call(EMBED, http2.message(REQUEST))
    wrong = rng.choice((
        http2.frame(http2.DATA, 0, 1, b"late"), http2.frame(http2.DATA, 0, 77, b"unknown"),
        http2.frame(http2.DATA, 0, 0, b"zero"), http2.frame(http2.HEADERS, 5, 2, http2.call_headers(EMBED)),
        http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), http2.frame(http2.WINDOW_UPDATE, 0, 1, bytes(4)),
        http2.frame(http2.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), http2.frame(http2.SETTINGS, 0, 0, b"odd"),
        http2.frame(http2.PING, 0, 0, b"short"), http2.frame(http2.GOAWAY, 0, 0, bytes(8)), b"\xff\xff\xff" + bytes(6),
        http2.frame(http2.HEADERS, 5, 3, b"\xff\xff\xff\xff\xff\xff\xff"), http2.frame(0x2A, 0xFF, 3, b"unknown kind"),
    ))  # fmt: skip
    return await _exchange(address, http2.hello() + good + wrong + call(EMBED, http2.message(REQUEST), stream=5),
                           streams=(5,))  # fmt: skip


async def never_read(address: str, rng: random.Random) -> Counter[str]:
    """Calls whose answers have no room, because the window is closed and nobody reads."""
    async with connection(address) as raw:
        await raw.send(http2.hello(window=0))
        streams = range(1, 64, 2)
        await raw.send(*(call(EMBED, http2.message(REQUEST), stream=stream) for stream in streams))
        return Counter({"never read": len(streams)})


async def left_open(address: str, rng: random.Random) -> Counter[str]:
    """Streams that say nothing more, until the connection breaks."""
    async with connection(address) as raw:
        await raw.send(http2.hello())
        method = rng.choice((EMBED, EMBED_STREAM, "/grpc.health.v1.Health/Watch", METHODS["embed"][-1][0]))
        streams = range(1, 1000, 2)
        block = http2.call_headers(method)
        await raw.send(*(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block) for stream in streams))
        await raw.send(http2.frame(http2.DATA, 0, 1, http2.message(REQUEST)[:3]))
        try:
            async with asyncio.timeout(_SILENCE_S / 4):
                await raw.answered(streams)
        except TimeoutError:
            pass
        answered = _answers(raw, streams)
        answered.pop("silence", None)
        return answered + Counter({"left open": len(streams)})


RAW: list[Attack] = [
    random_bytes, truncated, mangled, other_protocols, frame_floods, rapid_reset, compressed, wrong_headers,
    wrong_bodies, broken_http2, never_read, left_open,
]  # fmt: skip
