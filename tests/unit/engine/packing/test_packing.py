"""The layout of a batch: every (query, key) pair of the unshared attention, once, however prefixes are shared."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.layers.attention.cpu import attend
from services.engine.layers.pooling import Pooling
from services.engine.packing.packing import MIN_SHARED, Packed, pack

PREFIXES = [list(range(100, 100 + n)) for n in (0, 3, MIN_SHARED, 20)]


@st.composite
def sequences(draw: st.DrawFn) -> list[np.ndarray]:
    """Texts that share prefixes of prefixes, are prefixes of each other, or are equal."""
    texts = []
    for _ in range(draw(st.integers(1, 12))):
        first, second = draw(st.sampled_from(PREFIXES)), draw(st.sampled_from(PREFIXES))
        tail = draw(st.lists(st.integers(0, 2), max_size=12))
        texts.append(np.array((first + second + tail) or [7], np.int32))
    return texts


def visible(packed: Packed, row: int, segment: int) -> list[int]:
    """Rows that `row` attends to, by the ragged arrays."""
    keys = packed.kv_index if packed.kv_index is not None else np.arange(packed.tokens)
    own = keys[packed.cu_k[segment] : packed.cu_k[segment + 1]]
    behind = packed.cu_q[segment + 1] - 1 - row  # causal, aligned at the end
    rows: list[int] = own[: len(own) - behind].tolist()
    return rows


def seen_on_the_cpu(packed: Packed, cu: np.ndarray, *, causal: bool = True) -> list[list[int]]:
    """Rows that each query attends to: where all scores are equal, the values of exactly these are mixed."""
    nothing, rows = torch.zeros(packed.tokens, 1, packed.tokens), torch.eye(packed.tokens).unsqueeze(1)
    mixed = attend(nothing[: int(cu[-1])], nothing, rows, cu, packed.cu_q, packed.cu_k, causal=causal)
    return [np.flatnonzero(row[0]).tolist() for row in mixed.numpy()]


@settings(max_examples=150, deadline=None)
@given(sequences(), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_text_reads_as_if_it_were_alone(texts: list[np.ndarray], min_saving: float) -> None:
    packed = pack(texts, min_saving=min_saving)
    segment_of = np.repeat(np.arange(len(packed.cu_q) - 1), np.diff(packed.cu_q))
    on_the_cpu = seen_on_the_cpu(packed, packed.cu_q)
    last_on_the_cpu = seen_on_the_cpu(packed, packed.cu_wanted)
    for row in range(packed.tokens):
        rows = visible(packed, row, segment_of[row])
        assert packed.positions[row] == len(rows) - 1
        assert on_the_cpu[row] == sorted(rows)
    for text, output in zip(texts, packed.outputs, strict=True):
        last = packed.wanted_rows[output]
        rows = visible(packed, last, segment_of[last])
        assert packed.ids[rows].tolist() == text.tolist()
        assert last_on_the_cpu[output] == sorted(rows)
        assert packed.cu_wanted[segment_of[last] + 1] - packed.cu_wanted[segment_of[last]] == 1
    assert packed.requested_tokens == sum(map(len, texts))
    assert packed.tokens <= packed.requested_tokens
    assert len(packed.wanted_rows) == len({tuple(t) for t in texts}) == packed.cu_wanted[-1]
    assert packed.max_q == np.diff(packed.cu_q).max()
    assert packed.max_k == np.diff(packed.cu_k).max()
    if min_saving == 1.0:
        assert packed.kv_index is None


@settings(max_examples=100, deadline=None)
@given(sequences(), st.sampled_from([Pooling.FIRST, Pooling.LAST, Pooling.MEAN]))
def test_without_sharing_a_segment_is_a_distinct_text_in_which_all_see_all(
    texts: list[np.ndarray], pooling: Pooling
) -> None:
    packed = pack(texts, min_saving=1.0, pooling=pooling)
    assert packed.kv_index is None
    assert packed.texts == len(packed.cu_q) - 1 == len({tuple(text) for text in texts})
    wanted = seen_on_the_cpu(packed, packed.cu_wanted, causal=False)
    for text, output in zip(texts, packed.outputs, strict=True):
        whole = list(range(packed.cu_q[output], packed.cu_q[output + 1]))
        assert packed.ids[whole].tolist() == text.tolist()
        mine = slice(packed.starts[output], packed.starts[output + 1])
        picked = {Pooling.FIRST: whole[:1], Pooling.LAST: whole[-1:], Pooling.MEAN: whole}[pooling]
        assert packed.wanted_rows[mine].tolist() == picked
        assert wanted[mine] == [whole] * len(picked)
    assert packed.max_wanted == np.diff(packed.cu_wanted).max()


@pytest.mark.parametrize("pooling", [Pooling.FIRST, Pooling.MEAN])
def test_only_what_is_pooled_by_its_last_token_is_shared(pooling: Pooling) -> None:
    head = np.arange(20, dtype=np.int32)
    texts = [np.append(head, last).astype(np.int32) for last in (50, 51)]
    assert pack(texts).tokens == 22
    assert pack(texts, pooling=pooling).tokens == 42


def test_two_rerank_requests_share_the_system_prompt_once_and_each_query_once() -> None:
    rng = np.random.default_rng(0)
    system, queries = rng.integers(0, 1000, 60), [rng.integers(0, 1000, 12) for _ in range(2)]
    texts = [
        np.concatenate([system, query, rng.integers(0, 1000, length)]).astype(np.int32)
        for query in queries
        for length in (30, 40, 50)
    ]
    packed = pack(texts)
    assert packed.tokens == 60 + 2 * 12 + 2 * (30 + 40 + 50)
    assert packed.requested_tokens == 6 * 72 + 240


def test_equal_texts_are_computed_once() -> None:
    text = np.arange(5, dtype=np.int32)
    packed = pack([text, text + 1, text, text])
    assert packed.tokens == 10
    assert packed.outputs[0] == packed.outputs[2] == packed.outputs[3] != packed.outputs[1]


def test_a_prefix_shorter_than_worth_it_is_repeated() -> None:
    common = list(range(MIN_SHARED - 1))
    packed = pack([np.array([*common, 50], np.int32), np.array([*common, 51], np.int32)])
    assert packed.kv_index is None
    assert packed.tokens == 2 * MIN_SHARED


def test_too_small_a_saving_is_left_alone() -> None:
    head = np.arange(10, dtype=np.int32)
    texts = [np.concatenate([head, np.full(200, i, np.int32)]) for i in (50, 51)]
    assert pack(texts).tokens == 410
    assert pack(texts, min_saving=0.05).tokens == 420


@pytest.mark.timeout(20)
def test_ten_thousand_texts_take_linear_time() -> None:
    rng = np.random.default_rng(0)
    head = rng.integers(0, 1000, 20)
    texts = [np.concatenate([head, rng.integers(0, 1000, 12)]).astype(np.int32) for _ in range(10_000)]
    packed = pack(texts)
    assert packed.tokens < 0.5 * packed.requested_tokens
