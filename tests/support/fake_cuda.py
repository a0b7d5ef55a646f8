"""A CUDA device without a card: torch's fake tensors have a shape, a dtype and a device, but no values.

`Card` adds what a card refuses and a fake tensor lets pass: operands of two dtypes, an index from the host, a host that
waits, and what `varlen_attn`'s kernel checks. What needs a driver is replaced: events do nothing, pinned memory is
plain memory, and a graph runs as it is captured and not as it is replayed. Their behaviour and all values are tested
on a card (test_cuda.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import TorchFunctionMode

from services.engine.checkpoint.tensors import Tensors

CUDA = torch.device("cuda", 0)
# What makes the host wait for the device; forbidden between tokens and results.
_WAITS = (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.__bool__, torch.Tensor.numpy)
_PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
# The kernel's own dtypes (flash_api.cpp). torch's fake kernel takes any.
_ATTENTION_DTYPES = (torch.float16, torch.bfloat16)


class RefusedError(Exception):
    """A card would not have taken this."""


def refuse_unless(fact: object, reason: str) -> None:
    """Raises RefusedError."""
    if not fact:
        raise RefusedError(reason)


class Card(TorchFunctionMode):
    """The rules of a card for the functions of torch that the engine calls."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WAITS:
            refuse_unless(args[0].device.type == "cpu", f"the host waits for the device: {func.__name__}")
        if func in _PRODUCTS:
            refuse_unless(args[0].dtype == args[1].dtype, f"a product of {args[0].dtype} and {args[1].dtype}")
        if func is torch.Tensor.numpy:
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func is torch.Tensor.__bool__:
            return True
        if func is F.rms_norm:
            weight = kwargs["weight"]
            refuse_unless(args[0].dtype == weight.dtype, f"no kernel for a norm of {args[0].dtype} by {weight.dtype}")
        # Python's bindings of these two ask the device for its index, which a CPU build cannot.
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_.default(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
            refuse_unless(args[0].device == args[1].device, f"an index on {args[1].device} into {args[0].device}")
            return torch.ops.aten.index.Tensor(args[0], [args[1]])
        if func is torch.Tensor.__getitem__ and args[0].is_cuda and isinstance(args[1], slice):
            return torch.ops.aten.slice.Tensor(args[0], 0, args[1].start, args[1].stop)
        return func(*args, **kwargs)


def varlen_attn_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """torch 2.11's signature: heads are grouped without being told."""
    return _attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size)


def varlen_attn_2_13(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """The signature of torch 2.12 and 2.13: heads are grouped only with `enable_gqa`."""
    refuse_unless(enable_gqa or query.shape[1] == key.shape[1], "grouped heads without enable_gqa")
    return _attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What the kernel checks, then torch's own fake kernel."""
    refuse_unless(all(x.device == CUDA for x in (q, k, v, cu_q, cu_k)), "attention over tensors of two devices")
    refuse_unless(q.dtype in _ATTENTION_DTYPES, f"attention over {q.dtype}")
    refuse_unless(q.dtype == k.dtype == v.dtype, "attention over tensors of two dtypes")
    refuse_unless(q.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2], "queries, keys, values differ")
    refuse_unless(q.shape[1] % k.shape[1] == 0, "the heads of queries are no multiple of those of keys")
    refuse_unless(q.shape[2] <= 256 and q.shape[2] % 8 == 0, f"head_dim {q.shape[2]}")
    refuse_unless(all(x.stride(-1) == 1 for x in (q, k, v)), "a head's values are not side by side")
    for cu in (cu_q, cu_k):
        refuse_unless(cu.dtype == torch.int32 and cu.ndim == 1 and cu.is_contiguous(), f"cu_seq of {cu.dtype}")
    refuse_unless(len(cu_q) == len(cu_k) >= 2, f"{len(cu_q)} bounds of queries, {len(cu_k)} of keys")
    refuse_unless(type(max_q) is type(max_k) is int, "max_q and max_k are not plain integers")
    refuse_unless(window_size == (-1, 0), "attention that is not causal")
    grouped: dict[str, Any] = {} if q.shape[1] == k.shape[1] else {"enable_gqa": True}
    mixed = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=window_size, **grouped)
    assert isinstance(mixed, torch.Tensor)
    return mixed


class FakeTensors(Tensors):
    """In place of `Tensors`: any tensor that is asked for, as the hub's checkpoints store it."""

    def __init__(self) -> None:
        self.name = "fake"

    def __contains__(self, name: str) -> bool:
        return False

    def __call__(self, name: str, shape: tuple[int, ...], *, may_be_zero: bool = False) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16)


class _Event:
    def __init__(self, *, blocking: bool) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _Graph:
    def replay(self) -> None: ...


def _capture(graph: _Graph, pool: object, capture_error_mode: str) -> nullcontext[None]:
    return nullcontext()


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made within have no values, and may be on CUDA."""
    replaced: dict[str, Callable[..., object]] = {
        "Event": _Event,
        "CUDAGraph": _Graph,
        "graph": _capture,
        "graph_pool_handle": object,
        "synchronize": lambda: None,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        with FakeTensorMode(allow_non_fake_inputs=True), Card():
            yield
