"""The CUDA path from tokens to results without a card: its shapes, dtypes, devices and arguments, at the real sizes.

Not run here: compiled kernels, which need Inductor's CUDA backend; values, streams and the reuse of pinned memory.
test_cuda.py has those, on a card.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.shapes import SHAPES
from services.engine.devices.cuda import Cuda
from services.engine.devices.cuda_graphs import BUCKETS, Bucket
from services.engine.layers.attention.cuda import as_varlen
from services.engine.layers.linear import dense
from services.engine.layers.pooling import Pooling
from services.engine.models.base import Head, ModelInput, unit_vectors
from services.engine.models.decoder import build
from services.engine.models.decoder.weights import Weights
from services.engine.models.qwen3.config import ModelConfig
from services.engine.models.qwen3.heads import yes_no
from services.engine.packing import transfer
from services.engine.types import Ids
from tests.support.fake_cuda import CUDA, FakeTensors, RefusedError, fake_cuda, varlen_attn_2_11, varlen_attn_2_13

SIZES = ["0.6b", "4b", "8b"]
SIGNATURES = {"2.11": varlen_attn_2_11, "2.13": varlen_attn_2_13}
MAX_TOKENS = 8192

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    speak(monkeypatch, varlen_attn_2_13)
    with fake_cuda():
        yield


def speak(patch: pytest.MonkeyPatch, attention: Callable[..., Any]) -> None:
    """Lets batches attend by this `varlen_attn`."""
    patch.setattr(transfer, "read", partial(transfer.read, kernel=as_varlen(attention)))


def config(size: str, layers: int | None = None) -> ModelConfig:
    whole = ModelConfig.parse(SHAPES[size])
    return replace(whole, num_hidden_layers=layers or whole.num_hidden_layers)


def cuda(shape: ModelConfig, dtype: torch.dtype = torch.bfloat16, *, head: Head = unit_vectors) -> Cuda:
    model = build.prepare(shape, FakeTensors(), CUDA, dtype)(MAX_TOKENS)
    return Cuda(model, head, CUDA)


def score_head(shape: ModelConfig, device: torch.device = CUDA) -> Head:
    return yes_no(shape, FakeTensors(), 9693, 2152, device)


def separate() -> list[Ids]:
    """More than a graph holds, nothing in common, from one token to several slices of a feed-forward part."""
    return [np.arange(i, i + n, dtype=np.int32) for i, n in enumerate((1, 12, 300, 5, 8192, 8192, 700))]


def shared() -> list[Ids]:
    """A reranker's: one head, many documents, two of them the same."""
    head, rng = np.arange(80, dtype=np.int32), np.random.default_rng(0)
    documents = [rng.integers(100, 9999, n).astype(np.int32) for n in rng.integers(5, 200, 30)]
    return [np.concatenate([head, document]) for document in [*documents, documents[3]]]


def short(bucket: Bucket) -> list[Ids]:
    """Fills a graph's shape almost."""
    texts = bucket.segments - 1
    return [np.full(bucket.tokens // texts, i, np.int32) for i in range(texts)]


def results(device: Cuda, sequences: list[Ids], *, width: int) -> None:
    """Runs a batch and checks what comes back."""
    rows = device.launch(device.pack(sequences))()
    assert rows.shape == (len(sequences), width)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("sequences", [separate, shared])
@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_vectors(
    monkeypatch: pytest.MonkeyPatch, size: str, dtype: torch.dtype, signature: str, sequences: Callable[[], list[Ids]]
) -> None:
    speak(monkeypatch, SIGNATURES[signature])
    shape = config(size, 2)
    device = cuda(shape, dtype)
    assert (device.pack(sequences()).kv_index is not None) == (sequences is shared)
    results(device, sequences(), width=shape.hidden_size)


@pytest.mark.parametrize("size", SIZES)
def test_scores_through_all_layers(size: str) -> None:
    shape = config(size)
    results(cuda(shape, head=score_head(shape)), shared(), width=1)


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("size", SIZES)
def test_every_graph(monkeypatch: pytest.MonkeyPatch, size: str, signature: str) -> None:
    speak(monkeypatch, SIGNATURES[signature])
    shape = config(size, 2)
    device = cuda(shape)
    for bucket in reversed(BUCKETS):
        device._capture(bucket, torch.cuda.graph_pool_handle())
        graph = device._graphs[bucket]
        assert graph._out.shape == (bucket.segments, shape.hidden_size)
        assert (graph._out.dtype, graph._out.device) == (torch.float32, CUDA)
    for bucket in BUCKETS:
        results(device, short(bucket), width=shape.hidden_size)


def test_a_batch_for_a_graph_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda(config("0.6b", 1))
    device._capture(BUCKETS[0], torch.cuda.graph_pool_handle())
    monkeypatch.setattr(
        device, "_model", SimpleNamespace(hidden_size=1024, causal=True, pooling=Pooling.LAST)
    )  # not called again
    results(device, short(BUCKETS[0]), width=1024)


def test_float32_is_refused_by_attention() -> None:
    with pytest.raises(RefusedError, match=r"attention over torch\.float32"):
        results(cuda(config("0.6b", 1), torch.float32), separate(), width=1024)


# Each fault is planted where the real one would be made, and must not get through.


def weights(**changed: Callable[[Any], Any]) -> Plant:
    """Changes fields of the weights; those of a layer in every layer."""

    def change(value: Any) -> Any:
        return replace(
            value, **{name: how(getattr(value, name)) for name, how in changed.items() if hasattr(value, name)}
        )

    def plant(patch: pytest.MonkeyPatch) -> None:
        read = build.read  # type: ignore[attr-defined]  # imported there

        def faulty(*arguments: Any) -> Weights:
            found: Weights = change(read(*arguments))
            return replace(found, layers=tuple(map(change, found.layers)))

        patch.setattr(build, "read", faulty)

    return plant


def products(device: torch.device, dtype: torch.dtype) -> Plant:
    """Reads the weights of products to another device, or in another dtype."""
    return lambda patch: patch.setattr(build, "dense", lambda *_: dense(device, dtype))


def batch(**changed: Callable[[Any], Any]) -> Plant:
    """Changes fields of what the forward pass reads, or of its attention."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        read = transfer.read

        def faulty(*arguments: Any, **named: Any) -> ModelInput:
            found = read(*arguments, **named)
            attend: Any = found.attend
            own = {name: how for name, how in changed.items() if hasattr(found, name)}
            inner = {name: how for name, how in changed.items() if name not in own}
            return replace(
                found,
                attend=replace(attend, **{name: how(getattr(attend, name)) for name, how in inner.items()}),
                **{name: how(getattr(found, name)) for name, how in own.items()},
            )

        patch.setattr(transfer, "read", faulty)

    return plant


def attention(kernel: Callable[..., Any]) -> Plant:
    """Calls torch's attention in another way."""
    return lambda patch: patch.setattr(transfer, "read", partial(transfer.read, kernel=kernel))


def host(x: torch.Tensor) -> torch.Tensor:
    return x if x is None else x.to("cpu")


def each(how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    return lambda found: tuple(map(how, found))


def kernel_without(*names: str, of: Callable[..., Any] = varlen_attn_2_13) -> Callable[..., Any]:
    """The wrapper's call of torch 2.13, without some of its arguments."""

    def kernel(*arguments: Any) -> Any:
        fields = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
        call = {**dict(zip(fields, arguments[:-1], strict=True)), "window_size": (-1, 0), "enable_gqa": True}
        return of(**{name: value for name, value in call.items() if name not in names})

    return kernel


OURS = as_varlen(varlen_attn_2_13)
MIXED = "same device, but found at least two devices"

FAULTS: dict[str, tuple[Plant, str]] = {
    # dtypes
    "products in another dtype": (products(CUDA, torch.float16), "a product of torch.bfloat16 and torch.float16"),
    "a norm in float32": (weights(mlp_norm=torch.Tensor.float), "no kernel for a norm"),
    "bounds as int64": (batch(cu_q=torch.Tensor.long), "cu_seq of torch.int64"),
    "queries in float32": (attention(lambda q, *rest: OURS(q.float(), *rest)), "attention over torch.float32"),
    "keys in float16": (
        attention(lambda q, k, *rest: OURS(q, k.half(), *rest)),
        "attention over tensors of two dtypes",
    ),
    # devices
    "products on the host": (products(torch.device("cpu"), torch.bfloat16), MIXED),
    "embeddings on the host": (weights(embedding=host), "an index on cuda:0 into cpu"),
    "rotations on the host": (weights(rotation=host), "an index on cuda:0 into cpu"),
    "a norm on the host": (weights(next_norm=host), MIXED),
    "the norm of queries and keys on the host": (weights(norms=each(host)), MIXED),
    "tokens on the host": (batch(ids=host), "an index on cpu into cuda:0"),
    "positions on the host": (batch(positions=host), "an index on cpu into cuda:0"),
    "last rows on the host": (batch(wanted_rows=host), "an index on cpu into cuda:0"),
    "rows of keys on the host": (batch(kv_index=host), MIXED),
    "bounds on the host": (batch(cu_k=host), "attention over tensors of two devices"),
    # shapes
    "a norm of one value more": (weights(mlp_norm=lambda x: torch.cat([x, x[:1]])), "same shape as normalized_shape"),
    "a norm of too few heads": (weights(norms=each(lambda x: x[1:])), "broadcast"),
    "rotations of another width": (weights(rotation=lambda x: x.narrow(2, 0, 63)), "broadcast"),
    "embeddings of another width": (
        weights(embedding=lambda x: x.narrow(1, 0, 1023)),
        "same shape as normalized_shape",
    ),
    "a product left out": (weights(o=lambda _: lambda x: x), "broadcast"),
    "a bound too few": (batch(cu_k=lambda x: x[1:]), "bounds of queries"),
    "a token too few": (batch(ids=lambda x: x[1:]), "broadcast"),
    "a position too many": (batch(positions=lambda x: torch.cat([x, x[:1]])), "broadcast"),
    "a last row too few": (batch(wanted_rows=lambda x: x[1:]), "out of bounds"),
    "a value too few": (attention(lambda q, k, v, *rest: OURS(q, k, v[1:], *rest)), "queries, keys, values differ"),
    "queries and keys exchanged": (attention(lambda q, k, v, *rest: OURS(k, q, q, *rest)), "no multiple"),
    # arguments
    "a length as a tensor": (batch(max_q=torch.tensor), "not plain integers"),
    "not causal": (attention(kernel_without("window_size")), "not causal"),
    "grouped heads without the flag": (attention(kernel_without("enable_gqa")), "without enable_gqa"),
    "2.13's flag to 2.11": (attention(kernel_without(of=varlen_attn_2_11)), "unexpected keyword argument 'enable_gqa'"),
    "no length of keys": (attention(kernel_without("max_k")), "missing 1 required positional argument: 'max_k'"),
    "no values": (attention(kernel_without("value")), "missing 1 required positional argument: 'value'"),
    # the host waits for the device
    "a value read": (batch(positions=lambda x: x.new_zeros(len(x)) if x.any() else x), "the host waits"),
    "values copied": (attention(lambda q, *rest: OURS(q.cpu().to(CUDA), *rest)), "the host waits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, found = FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises((RefusedError, RuntimeError, TypeError, IndexError), match=found):
        run(cuda(config("0.6b", 2)))


HEADS: dict[str, tuple[Callable[[], Head], str]] = {
    "on the host": (lambda: score_head(config("0.6b"), torch.device("cpu")), MIXED),
    "in bfloat16": (lambda: lambda h: h @ torch.empty(1024, 1, device=CUDA, dtype=torch.bfloat16), "a product of"),
    "of another width": (lambda: lambda h: h @ torch.empty(1023, 1, device=CUDA), "1024"),
    "that waits": (lambda: lambda h: h.cpu(), "the host waits"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_faulty_head_is_found(kind: str) -> None:
    make, found = HEADS[kind]
    with pytest.raises((RefusedError, RuntimeError), match=found):
        run(cuda(config("0.6b", 1), head=make()))


def test_what_the_faults_are_planted_in_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    attention(kernel_without())(monkeypatch)
    run(cuda(config("0.6b", 2)))


def run(device: Cuda) -> None:
    """One graph, and one batch with shared prefixes."""
    device._capture(BUCKETS[0], torch.cuda.graph_pool_handle())
    results(device, short(BUCKETS[0]), width=1024)
    results(device, shared(), width=1024)
