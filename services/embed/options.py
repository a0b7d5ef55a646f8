"""EmbedRequest's and EmbedOptions' common fields, checked and in the engine's terms."""

from __future__ import annotations

from dataclasses import dataclass

from services.engine.types import InputType, Lane, ModelInfo, Truncation
from services.runtime.validate import Check
from services.runtime.vectors import MIN_DIMENSIONS
from services.worker import wire
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

MIN_MAX_TOKENS = 8

_INPUT_TYPE = {
    embed_pb2.INPUT_TYPE_UNSPECIFIED: InputType.DOCUMENT,
    embed_pb2.INPUT_TYPE_DOCUMENT: InputType.DOCUMENT,
    embed_pb2.INPUT_TYPE_QUERY: InputType.QUERY,
    embed_pb2.INPUT_TYPE_SYMMETRIC: InputType.SYMMETRIC,
}


@dataclass(frozen=True, slots=True)
class Options:
    """How texts are to be embedded. `instruction` None: the engine's default for the input type."""

    input_type: InputType
    instruction: str | None
    dimensions: int
    encoding: embed_pb2.Encoding
    truncation: Truncation
    max_tokens: int | None
    lane: Lane


def least_dimensions(info: ModelInfo) -> int:
    """Least width that may be asked for: 32, or the model's where that is less."""
    return min(MIN_DIMENSIONS, info.dimensions)


def options_of(
    wanted: embed_pb2.EmbedRequest | embed_pb2.EmbedOptions, info: ModelInfo, max_text_bytes: int, check: Check
) -> Options:
    """The options. Raises InvalidFields for what is wrong with them and what `check` has noted before."""
    streams = isinstance(wanted, embed_pb2.EmbedOptions)
    check.enum("input_type", wanted.input_type, embed_pb2.InputType)
    check.enum("encoding", wanted.encoding, embed_pb2.Encoding)
    check.enum("truncation", wanted.truncation, common_pb2.Truncation)
    check.enum("priority", wanted.priority, common_pb2.Priority)
    if wanted.HasField("instruction"):
        check.filled("instruction", wanted.instruction)
        check.size("instruction", wanted.instruction, max_text_bytes)
        if _INPUT_TYPE.get(wanted.input_type) is InputType.DOCUMENT:
            check.wrong("instruction", "documents are embedded without one; leave it out, or set input_type to QUERY")
    if wanted.HasField("dimensions"):
        check.within("dimensions", wanted.dimensions, least_dimensions(info), info.dimensions)
    if wanted.HasField("max_tokens"):
        check.within("max_tokens", wanted.max_tokens, MIN_MAX_TOKENS, info.max_tokens)
    check.done()
    return Options(
        input_type=_INPUT_TYPE[wanted.input_type],
        instruction=wanted.instruction if wanted.HasField("instruction") else None,
        dimensions=wanted.dimensions if wanted.HasField("dimensions") else info.dimensions,
        encoding=wanted.encoding,
        truncation=wire.TRUNCATION[wanted.truncation],
        max_tokens=wanted.max_tokens if wanted.HasField("max_tokens") else None,
        lane=wire.lane(wanted.priority, Lane.BULK if streams else Lane.INTERACTIVE),
    )
