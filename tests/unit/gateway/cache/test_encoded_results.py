"""Ready-made results: what is put together from them is a message like any other."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.encoded_results import EncodedResultCache
from winnow.embed.v1 import embed_pb2


def result(data: bytes, tokens: int = 3) -> embed_pb2.EmbedResult:
    return embed_pb2.EmbedResult(embedding=embed_pb2.Embedding(data=data, dimensions=len(data)), tokens=tokens)


@given(st.lists(st.integers(0, 20_000).map(bytes), min_size=1, max_size=5))
def test_a_concatenation_is_a_response(payloads: list[bytes]) -> None:
    frames = EncodedResultCache(1 << 20)
    results = [result(data) for data in payloads]
    for number, one in enumerate(results):
        frames.put("key", str(number), one)
    found = frames.get("key", [str(number) for number in range(len(results))])
    assert found is not None
    response = embed_pb2.EmbedResponse.FromString(b"".join(frame.data for frame in found))
    assert list(response.results) == results


def test_all_or_nothing_and_keys_apart() -> None:
    frames = EncodedResultCache(1 << 20)
    frames.put(("a", 1), "text", result(b"1"))
    frames.put(("a", 2), "text", result(b"2"))
    assert frames.get(("a", 1), ["text", "other"]) is None
    assert frames.get(("a", 3), ["text"]) is None
    for number in (1, 2):
        found = frames.get(("a", number), ["text"])
        assert found is not None
        [frame] = found
        assert embed_pb2.EmbedResponse.FromString(frame.data).results[0].embedding.data == str(number).encode()


def test_many_keys_are_forgotten_not_confused() -> None:
    frames = EncodedResultCache(1 << 20)
    for number in range(5000):
        frames.put(number, "text", result(str(number).encode()))
    for number in (0, 4096, 4999):
        found = frames.get(number, ["text"])
        assert found is None or str(number).encode() in found[0].data
    assert frames.get(4999, ["text"]) is not None


def test_many_keys_are_forgotten_long_before_the_limit() -> None:
    frames = EncodedResultCache(1 << 30)
    for number in range(5000):
        frames.put(number, "text", result(b"x"))
    assert [frames.get(number, ["text"]) is not None for number in (0, 900, 4999)] == [False, False, True]


@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.lists(st.integers(0, 5), max_size=4)), max_size=40),
)
def test_never_another_text_and_never_over_the_limit(limit: int, steps: list[tuple[bool, str, list[int]]]) -> None:
    frames = EncodedResultCache(limit)
    for writes, key, numbers in steps:
        texts = [str(number) for number in numbers]
        if writes:
            for text in texts:
                frames.put(key, text, result(key.encode() + text.encode()))
        elif (found := frames.get(key, texts)) is not None:
            payloads = [embed_pb2.EmbedResponse.FromString(frame.data).results[0].embedding.data for frame in found]
            assert payloads == [key.encode() + text.encode() for text in texts]
        assert 0 <= frames.held_bytes <= limit


def test_what_is_asked_for_stays_and_the_rest_goes() -> None:
    frames = EncodedResultCache(10_000)
    frames.put("key", "asked", result(b"a"))
    frames.put("key", "left", result(b"b"))
    for number in range(200):
        frames.put("key", str(number), result(b"c"))
        assert frames.get("key", ["asked", "asked"]) is not None
    assert frames.get("key", ["left"]) is None
