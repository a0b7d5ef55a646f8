"""The options of embedding and reranking: their rules, their defaults, and which of them decide a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.api.models import (
    Model,
    accepts_instructions,
    check_dimensions,
    check_input_type,
    check_instruction_accepted,
    scores_are_logits,
)
from services.runtime.validation import Check
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

_MIN_MAX_TOKENS_EMBED = 8
_MIN_MAX_TOKENS_RERANK = 128
_DOCUMENT = (embed_pb2.INPUT_TYPE_UNSPECIFIED, embed_pb2.INPUT_TYPE_DOCUMENT)


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How texts are embedded. None: the model's default."""

    input_type: embed_pb2.InputType = embed_pb2.INPUT_TYPE_DOCUMENT
    instruction: str | None = None
    truncation: common_pb2.Truncation = common_pb2.TRUNCATION_END
    max_tokens: int | None = None
    priority: common_pb2.Priority = common_pb2.PRIORITY_INTERACTIVE

    def resolved(self, model: embed_pb2.GetModelResponse) -> EmbedOptions:
        """The options with the model's defaults instead of None; the instruction is None if the model uses its own.

        Raises InvalidFields for what the model does not have.
        """
        check = Check()
        self.check(check, model)
        check.done()
        instruction = self.instruction
        if not instruction and self.input_type == embed_pb2.INPUT_TYPE_QUERY:
            instruction = model.default_instruction or None
        return replace(self, instruction=instruction, max_tokens=self.max_tokens or model.max_tokens)

    def check(self, check: Check, model: embed_pb2.GetModelResponse) -> None:
        """Checks what the model must have."""
        check_input_type(check, self.input_type, model)
        if self.instruction is not None:
            check_instruction_accepted(check, model)

    def identity(self) -> tuple[str, ...]:
        """All that decides a vector of full width, besides its text. Requires `resolved` options."""
        return (
            embed_pb2.InputType.Name(self.input_type),
            self.instruction or "",
            str(self.max_tokens),
            common_pb2.Truncation.Name(self.truncation),
        )

    def request(self, texts: Sequence[str], encoding: embed_pb2.Encoding) -> embed_pb2.EmbedRequest:
        """The request that asks a worker for vectors of full width."""
        return embed_pb2.EmbedRequest(
            texts=texts,
            input_type=self.input_type,
            instruction=self.instruction,
            encoding=encoding,
            truncation=self.truncation,
            max_tokens=self.max_tokens,
            priority=self.priority,
        )


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """How a vector of full width is cut and written."""

    dimensions: int
    encoding: embed_pb2.Encoding


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """What documents are scored against, and how. None: the model's default."""

    query: str
    instruction: str | None = None
    truncation: common_pb2.Truncation = common_pb2.TRUNCATION_END
    max_tokens: int | None = None
    priority: common_pb2.Priority = common_pb2.PRIORITY_INTERACTIVE

    def resolved(self, model: rerank_pb2.GetModelResponse) -> RerankOptions:
        """The options with the model's defaults instead of None; the instruction is None if the model has none.

        Raises InvalidFields for an instruction that the model does not accept.
        """
        check = Check()
        self.check(check, model)
        check.done()
        return replace(
            self,
            instruction=self.instruction or model.default_instruction or None,
            max_tokens=self.max_tokens or model.max_tokens,
        )

    def check(self, check: Check, model: rerank_pb2.GetModelResponse) -> None:
        """Checks what the model must have."""
        if self.instruction is not None:
            check_instruction_accepted(check, model)

    def identity(self) -> tuple[str, ...]:
        """All that decides a score, besides the document. Requires `resolved` options."""
        return (
            self.instruction or "",
            self.query,
            str(self.max_tokens),
            common_pb2.Truncation.Name(self.truncation),
        )

    def request(self, documents: Sequence[str]) -> rerank_pb2.RerankRequest:
        """The request that asks a worker for the scores of documents."""
        return rerank_pb2.RerankRequest(
            query=self.query,
            documents=documents,
            instruction=self.instruction,
            truncation=self.truncation,
            max_tokens=self.max_tokens,
            priority=self.priority,
        )


def embed_options(
    wanted: embed_pb2.EmbedRequest | embed_pb2.EmbedOptions,
    model: embed_pb2.GetModelResponse,
    limits: common_pb2.Limits,
    check: Check,
) -> tuple[EmbedOptions, VectorFormat]:
    """The options of a request or a stream. Raises InvalidFields for them and for the violations in `check`."""
    check.enum("encoding", wanted.encoding, embed_pb2.Encoding)
    if check.enum("input_type", wanted.input_type, embed_pb2.InputType):
        check_input_type(check, wanted.input_type or embed_pb2.INPUT_TYPE_DOCUMENT, model)
    if wanted.HasField("instruction"):
        _check_instruction(check, wanted.instruction, model, limits)
        if wanted.input_type in _DOCUMENT and accepts_instructions(model):
            check.wrong("instruction", "documents are embedded without one; leave it out, or set input_type to QUERY")
    if wanted.HasField("dimensions"):
        check_dimensions(check, wanted.dimensions, model)
    max_tokens = _max_tokens(check, wanted, _MIN_MAX_TOKENS_EMBED, model.max_tokens)
    _check_shared(check, wanted)
    check.done()
    streams = isinstance(wanted, embed_pb2.EmbedOptions)
    return (
        EmbedOptions(
            input_type=wanted.input_type or embed_pb2.INPUT_TYPE_DOCUMENT,
            instruction=wanted.instruction if wanted.HasField("instruction") else None,
            truncation=wanted.truncation or common_pb2.TRUNCATION_END,
            max_tokens=max_tokens,
            priority=wanted.priority or (common_pb2.PRIORITY_BULK if streams else common_pb2.PRIORITY_INTERACTIVE),
        ),
        VectorFormat(
            dimensions=wanted.dimensions if wanted.HasField("dimensions") else model.dimensions,
            encoding=wanted.encoding or embed_pb2.ENCODING_FLOAT32,
        ),
    )


def rerank_options(
    request: rerank_pb2.RerankRequest, model: rerank_pb2.GetModelResponse, limits: common_pb2.Limits
) -> RerankOptions:
    """The options of a request. Raises InvalidFields; the sizes of documents are checked one by one, later."""
    check = Check()
    check.filled("query", request.query)
    check.size("query", request.query, limits.max_text_bytes)
    check.count("documents", request.documents, 1, limits.max_items)
    if request.HasField("instruction"):
        _check_instruction(check, request.instruction, model, limits)
    if request.HasField("top_n") and request.top_n < 1:
        check.wrong("top_n", "is 0; leave it out for all documents, or ask for at least 1")
    if request.HasField("min_score") and not scores_are_logits(model):
        check.within("min_score", request.min_score, 0, 1)
    elif math.isnan(request.min_score):
        check.wrong("min_score", "is not a number")
    max_tokens = _max_tokens(check, request, _MIN_MAX_TOKENS_RERANK, model.max_tokens)
    _check_shared(check, request)
    check.done()
    return RerankOptions(
        query=request.query,
        instruction=request.instruction if request.HasField("instruction") else None,
        truncation=request.truncation or common_pb2.TRUNCATION_END,
        max_tokens=max_tokens,
        priority=request.priority or common_pb2.PRIORITY_INTERACTIVE,
    )


def check_instruction(check: Check, value: str, limits: common_pb2.Limits) -> None:
    """An instruction that was given: not empty, and no longer than a text may be."""
    check.filled("instruction", value)
    check.size("instruction", value, limits.max_text_bytes)


def _check_instruction(check: Check, value: str, model: Model, limits: common_pb2.Limits) -> None:
    check_instruction(check, value, limits)
    check_instruction_accepted(check, model)


_Wanted = embed_pb2.EmbedRequest | embed_pb2.EmbedOptions | rerank_pb2.RerankRequest


def _max_tokens(check: Check, wanted: _Wanted, least: int, most: int) -> int | None:
    if not wanted.HasField("max_tokens"):
        return None
    check.within("max_tokens", wanted.max_tokens, min(least, most), most)
    return wanted.max_tokens


def _check_shared(check: Check, wanted: _Wanted) -> None:
    check.enum("truncation", wanted.truncation, common_pb2.Truncation)
    check.enum("priority", wanted.priority, common_pb2.Priority)
