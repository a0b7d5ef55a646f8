"""What the bodies of several APIs have in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from winnow.embed.v1 import embed_pb2


class Body(BaseModel):
    """A body in JSON. Types are not converted; members that are not known are ignored, as clients send many."""

    model_config = ConfigDict(strict=True, frozen=True)


class TextObject(Body):
    """A document as an object; its other members are ignored."""

    text: str


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]

INPUT_TYPES = {
    None: embed_pb2.INPUT_TYPE_DOCUMENT,
    "document": embed_pb2.INPUT_TYPE_DOCUMENT,
    "query": embed_pb2.INPUT_TYPE_QUERY,
    "symmetric": embed_pb2.INPUT_TYPE_SYMMETRIC,
}


def _no_tokens(value: Any) -> Any:
    first = value[0] if isinstance(value, list) and value else value
    first = first[0] if isinstance(first, list) and first else first
    if isinstance(first, int):
        raise ValueError(
            "holds tokens, which belong to another model's tokenizer; send text "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        )
    return value


Texts = Annotated[str | list[str], BeforeValidator(_no_tokens)]
"""One text or several. Arrays of tokens are refused."""


def listed(texts: str | list[str]) -> list[str]:
    """The texts of one or several."""
    return [texts] if isinstance(texts, str) else texts


def text_of(document: str | TextObject) -> str:
    """The text of a document in either form."""
    return document if isinstance(document, str) else document.text
