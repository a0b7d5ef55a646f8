"""The integer side of the CUDA path: buckets, padding, the buffer that carries a batch. No device needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.devices.buffer_pool import BufferPool
from services.engine.devices.cuda_graphs import BUCKETS, Bucket, bucket_for, pad
from services.engine.layers.attention.cuda import Ragged
from services.engine.layers.pooling import Pooling
from services.engine.packing import transfer
from services.engine.packing.packing import Packed, pack
from tests.support.plain_attention import plain_varlen

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=40)
examples = settings(max_examples=100, deadline=None)


def unshared(counts: list[int], pooling: Pooling = Pooling.LAST) -> Packed:
    return pack([np.full(n, i, np.int32) for i, n in enumerate(counts)], min_saving=1.0, pooling=pooling)


def fits(packed: Packed, bucket: Bucket) -> bool:
    return packed.tokens <= bucket.tokens and packed.texts < bucket.segments


@examples
@given(lengths)
def test_the_smallest_bucket_that_fits(counts: list[int]) -> None:
    packed = unshared(counts)
    assert bucket_for(packed) == next((b for b in BUCKETS if fits(packed, b)), None)


def test_every_bucket_can_be_filled_with_tokens_and_with_segments() -> None:
    for bucket in BUCKETS:
        assert bucket_for(unshared([bucket.tokens])) == bucket
        assert bucket_for(unshared([bucket.tokens // (bucket.segments - 1)] * (bucket.segments - 1))) == bucket
    assert bucket_for(unshared([BUCKETS[-1].tokens + 1])) is None


def test_a_batch_with_shared_prefixes_has_no_bucket() -> None:
    head = np.arange(20, dtype=np.int32)
    packed = pack([np.append(head, 50).astype(np.int32), np.append(head, 51).astype(np.int32)])
    assert packed.kv_index is not None
    assert bucket_for(packed) is None


@examples
@given(lengths, st.sampled_from(Pooling))
def test_padding_covers_every_row_once_and_changes_no_real_one(counts: list[int], pooling: Pooling) -> None:
    packed = unshared(counts, pooling)
    bucket = bucket_for(packed)
    if bucket is None:
        return
    padded = pad(packed, bucket)
    # The shape depends on the bucket alone, or a graph could not replay it.
    assert transfer.lay_out(padded) == transfer.lay_out(pad(unshared([1], pooling), bucket))
    assert (padded.max_q, padded.max_k) == (bucket.tokens, bucket.tokens)
    assert padded.cu_q[0] == 0
    assert padded.cu_q[-1] == len(padded.ids) == bucket.tokens
    assert (np.diff(padded.cu_q) >= 0).all()
    real = len(counts)
    assert np.array_equal(padded.cu_q[: real + 1], packed.cu_q)
    assert np.array_equal(padded.ids[: packed.tokens], packed.ids)
    assert np.array_equal(padded.wanted_rows[: len(packed.wanted_rows)], packed.wanted_rows)
    assert padded.wanted_rows.max() < bucket.tokens
    assert np.array_equal(padded.starts[: real + 1], packed.starts)
    assert len(padded.starts) == bucket.segments + 1
    if pooling is Pooling.MEAN:
        assert np.array_equal(padded.cu_wanted, padded.cu_q)
        assert np.array_equal(padded.starts, padded.cu_q)
    else:  # queries of the last layer: one per text, none for padding
        assert np.diff(padded.cu_wanted).tolist() == [1] * real + [0] * (bucket.segments - real)


@examples
@given(lengths, st.booleans(), st.sampled_from(Pooling), st.booleans())
def test_a_batch_survives_the_buffer(counts: list[int], shared: bool, pooling: Pooling, causal: bool) -> None:
    head = np.arange(20, dtype=np.int32)
    packed = pack([np.concatenate([head, np.full(n, i)]).astype(np.int32) for i, n in enumerate(counts)],
                  min_saving=0.0 if shared else 1.0, pooling=pooling)  # fmt: skip
    layout = transfer.lay_out(packed)
    buffer = np.full(layout.words + 7, -1, np.int32)
    transfer.write(packed, layout, buffer)
    batch = transfer.read(packed, layout, torch.from_numpy(buffer), causal=causal, kernel=plain_varlen)
    assert isinstance(batch.attend, Ragged)
    assert isinstance(batch.attend_wanted, Ragged)
    for tensor, array in [
        (batch.ids, packed.ids),
        (batch.positions, packed.positions),
        (batch.wanted_rows, packed.wanted_rows),
        (batch.starts, packed.starts),
        (batch.attend.cu_q, packed.cu_q),
        (batch.attend.cu_k, packed.cu_k),
        (batch.attend_wanted.cu_q, packed.cu_wanted),
    ]:
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.data_ptr() % 16 == batch.ids.data_ptr() % 16
    assert (batch.attend.causal, batch.attend_wanted.causal) == (causal, causal)
    assert batch.attend_wanted.max_q == np.diff(packed.cu_wanted).max()
    assert (batch.attend.kv_index is None) == (packed.kv_index is None)
    if packed.kv_index is not None:
        assert batch.attend.kv_index is not None
        assert np.array_equal(batch.attend.kv_index.numpy(), packed.kv_index)


def test_slots_are_reused_grown_and_never_shared() -> None:
    pool = BufferPool(2, pin=False)
    first, second, third = (pool.take(10) for _ in range(3))
    assert len({id(slot) for slot in (first, second, third)}) == 3
    pool.give(first)
    assert pool.take(10) is first
    pool.give(second)
    large = pool.take(100_000)
    assert large is not second
    assert len(large.ints) >= 100_000
    pool.give(large)
    assert pool.take(90_000) is large


def test_a_slot_makes_room_for_results_once() -> None:
    slot = BufferPool(1, pin=False).take(10)
    out = slot.room(100_000)
    assert len(out) == 100_000
    assert slot.room(90_000).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [1, 6])
def test_the_wrapper_speaks_to_this_torch(rows: int, causal: bool) -> None:
    """The signature changed in each of torch 2.10, 2.11 and 2.12; without CUDA the call ends in the dispatcher."""
    from services.engine.layers.attention.cuda import varlen

    cu = torch.tensor([0, rows], dtype=torch.int32)
    q, k = torch.zeros(rows, 4, 16, dtype=torch.bfloat16), torch.zeros(rows, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="CPU"):
        varlen(q, k, k, cu, cu, rows, rows, causal)
