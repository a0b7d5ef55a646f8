import gzip
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from gateway.http import body
from gateway.http.body import ClientGone
from gateway.http.errors import HttpProblem


def request(*chunks: bytes, gone: bool = False, **headers: str) -> Request:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": encoded}, receive)


async def test_a_body_is_read_to_its_limit() -> None:
    assert await body.whole(request(b"ab", b"cd"), 4) == b"abcd"
    for wrong in (request(b"ab", b"cde"), request(content_length="5")):
        with pytest.raises(HttpProblem) as refused:
            await body.whole(wrong, 4)
        assert refused.value.http_status == 413


async def test_gzip_is_unpacked_to_the_limit() -> None:
    packed = gzip.compress(b"a" * 3_000_000)
    halves = packed[:100], packed[100:]
    assert await body.whole(request(*halves, content_encoding="gzip"), 3_000_000) == b"a" * 3_000_000
    with pytest.raises(HttpProblem, match="more than 2999999 bytes"):
        await body.whole(request(*halves, content_encoding="gzip"), 2_999_999)


@pytest.mark.parametrize("sent", [[b"nonsense"], [gzip.compress(b"abc")[:-4]], [gzip.compress(b"abc") + b"x"]])
async def test_what_is_no_gzip_is_refused(sent: Sequence[bytes]) -> None:
    with pytest.raises(HttpProblem, match="not a valid gzip stream"):
        await body.whole(request(*sent, content_encoding="gzip"), 100)


async def test_another_coding_is_refused() -> None:
    with pytest.raises(HttpProblem) as refused:
        await body.whole(request(b"x", content_encoding="br"), 100)
    assert refused.value.http_status == 415


async def test_a_client_that_leaves_is_no_error_of_ours() -> None:
    with pytest.raises(ClientGone):
        await body.whole(request(b"x", gone=True), 100)


async def test_lines_are_cut_wherever_the_chunks_end() -> None:
    sent = b"one\n\ntwo\r\n  \nthree"
    for size in range(1, len(sent)):
        chunks = [sent[at : at + size] for at in range(0, len(sent), size)]
        assert [line async for line in body.lines(request(*chunks), 10)] == [b"one", b"two", b"three"]


async def test_a_line_has_a_limit_and_the_body_none() -> None:
    assert len([line async for line in body.lines(request(*[b"12345\n"] * 100), 5)]) == 100
    with pytest.raises(HttpProblem) as refused:
        [line async for line in body.lines(request(b"123", b"456"), 5)]
    assert refused.value.http_status == 413


def test_values_are_counted_before_they_are_parsed() -> None:
    body.check_values(b"[[]]", most=2)
    with pytest.raises(HttpProblem, match="more than 2 JSON values"):
        body.check_values(b"[[],[]]", most=2)
