"""The LRU: never over its limit, and the least recently used goes first."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.lru import Lru


@dataclass(frozen=True)
class Value:
    name: int
    size: int


@given(st.integers(0, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 20)), max_size=60))
def test_against_a_list(limit: int, steps: list[tuple[bool, int, int]]) -> None:
    lru: Lru[bytes, Value] = Lru(limit)
    model: list[tuple[bytes, Value]] = []
    for writes, number, size in steps:
        key = bytes((number,))
        if writes:
            lru.put(key, Value(number, size))
            model = [pair for pair in model if pair[0] != key] + [(key, Value(number, size))]
            while sum(value.size for _, value in model) > limit:
                model.pop(0)
        else:
            known = dict(model).get(key)
            assert lru.get(key) == known
            if known is not None:
                model = [pair for pair in model if pair[0] != key] + [(key, known)]
        assert lru.held_bytes == sum(value.size for _, value in model) <= limit
        assert len(lru) == len(model)
