"""Embeds the texts of a request, for all APIs."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.errors import as_problem
from gateway.http.exchange import Exchange
from services.runtime.errors import with_field
from services.runtime.local_calls import LocalCall
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

# Most values that are written as JSON on the event loop, about 5 ms.
_INLINE_VALUES = 1 << 14

_NEGATIVE_ZERO = re.compile(r"-0(?=[,\]])")


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of all texts, as gRPC returns them, with the model and the cost."""

    vectors: Sequence[embed_pb2.Embedding]
    model: common_pb2.ModelIdentity
    usage: common_pb2.Usage

    async def written(self, write: Callable[[], bytes]) -> bytes:
        """The result of `write`, which writes all values as numbers: on another thread if they are many."""
        values = sum(vector.dimensions for vector in self.vectors)
        return write() if values <= _INLINE_VALUES else await asyncio.to_thread(write)


async def embed(
    exchange: Exchange, call: LocalCall, request: embed_pb2.EmbedRequest, model: str | None, field: str
) -> Embedded:
    """Embeds. A text that fails, fails the request: these APIs have no error of an item. `field`: of the texts."""

    async def work() -> bytes:
        await exchange.embed_model(model)
        return await call.unary(request)

    response = embed_pb2.EmbedResponse.FromString(await exchange.run(work()))
    for position, result in enumerate(response.results):
        if result.HasField("error"):
            raise as_problem(with_field(result.error, f"{field}[{position}]"))
    return Embedded([result.embedding for result in response.results], response.model, response.usage)


def floats(embedding: embed_pb2.Embedding) -> bytes:
    """The values of a FLOAT32 vector as a list in JSON. Nine digits name a float32 exactly, and are quickly written."""
    values: npt.NDArray[np.float32] = np.frombuffer(embedding.data, "<f4")
    written = f"[{','.join(['%.9g'] * len(values)) % tuple(values.tolist())}]"
    if np.signbit(values[values == 0]).any():
        written = _NEGATIVE_ZERO.sub("-0.0", written)  # readers take -0 for an integer, which has no sign
    return written.encode()
