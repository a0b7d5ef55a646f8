"""What a model has, by its GetModelResponse, and the checks of requests against it.

Servers that are older than a field do not send it; the contract says what that means.
"""

from __future__ import annotations

from services.runtime.validation import Check
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

Model = embed_pb2.GetModelResponse | rerank_pb2.GetModelResponse


def accepts_instructions(model: Model) -> bool:
    """Whether a request may have an instruction."""
    return model.accepts_instructions or not model.HasField("accepts_instructions")


def scores_are_logits(model: rerank_pb2.GetModelResponse) -> bool:
    """Whether the scores are logits; else they are probabilities."""
    return model.score_type == rerank_pb2.SCORE_TYPE_LOGIT


def check_instruction_accepted(check: Check, model: Model) -> None:
    """An instruction was given: the model must accept it."""
    if not accepts_instructions(model):
        check.wrong("instruction", f"is not accepted by this model ({model.model.name}); leave it out")


def check_input_type(check: Check, input_type: embed_pb2.InputType, model: embed_pb2.GetModelResponse) -> None:
    """An input type that the model has."""
    if model.input_types and input_type not in model.input_types:
        name, *others = map(embed_pb2.InputType.Name, [input_type, *model.input_types])
        check.wrong("input_type", f"is {name}; this model ({model.model.name}) has {', '.join(others)}")


def check_dimensions(check: Check, dimensions: int, model: embed_pb2.GetModelResponse) -> None:
    """A width that the model's vectors have, or can be cut to."""
    if model.min_dimensions == model.dimensions != dimensions:
        check.wrong(
            "dimensions",
            f"is {dimensions}; the vectors of this model ({model.model.name}) have {model.dimensions} and cannot be cut"
            ": leave it out",
        )
    else:
        check.within("dimensions", dimensions, model.min_dimensions, model.dimensions)
