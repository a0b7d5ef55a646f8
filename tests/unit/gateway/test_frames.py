"""Ready-made results: what is put together from them is a message like any other."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.frames import Frames
from winnow.embed.v1 import embed_pb2


def result(data: bytes, tokens: int = 3) -> embed_pb2.EmbedResult:
    return embed_pb2.EmbedResult(embedding=embed_pb2.Embedding(data=data, dimensions=len(data)), tokens=tokens)


@given(st.lists(st.integers(0, 20_000).map(bytes), min_size=1, max_size=5))
def test_a_concatenation_is_a_response(payloads):
    frames = Frames(1 << 20)
    results = [result(data) for data in payloads]
    for number, one in enumerate(results):
        frames.put("key", str(number), one)
    found = frames.get("key", [str(number) for number in range(len(results))])
    assert found is not None
    response = embed_pb2.EmbedResponse.FromString(b"".join(frame.data for frame in found))
    assert list(response.results) == results


def test_all_or_nothing_and_keys_apart():
    frames = Frames(1 << 20)
    frames.put(("a", 1), "text", result(b"1"))
    frames.put(("a", 2), "text", result(b"2"))
    assert frames.get(("a", 1), ["text", "other"]) is None
    assert frames.get(("a", 3), ["text"]) is None
    for number in (1, 2):
        [frame] = frames.get(("a", number), ["text"])
        assert embed_pb2.EmbedResponse.FromString(frame.data).results[0].embedding.data == str(number).encode()


def test_many_keys_are_forgotten_not_confused():
    frames = Frames(1 << 20)
    for number in range(5000):
        frames.put(number, "text", result(str(number).encode()))
    for number in (0, 4096, 4999):
        found = frames.get(number, ["text"])
        assert found is None or str(number).encode() in found[0].data
    assert frames.get(4999, ["text"]) is not None
