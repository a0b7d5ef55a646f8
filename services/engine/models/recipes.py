"""How models are served whose folder does not say all of it, and the numbers that their cards print.

A folder is obeyed. A row adds what only the model's card, its authors' code or its paper says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from services.engine.layers.pooling import Pooling
from services.engine.types import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest distance from a printed number that rounding may explain, by the number format of the computation."""

    float32: float
    float16: float
    bfloat16: float
    int8: float

    def of(self, dtype: str) -> float:
        """That of a number format by its name."""
        by_name = {
            "float32": self.float32,
            "float16": self.float16,
            "bfloat16": self.bfloat16,
            "int8": self.int8,
        }
        return by_name[dtype]


# Of a cosine or a probability: cards print four digits, some of a computation in 16 bits. A wrong prompt, mask or
# pooling moves at least one of several numbers by more than that of int8.
_UNIT = Tolerance(float32=2e-3, float16=5e-3, bfloat16=3e-2, int8=1e-1)
# Of a logit that was computed in float16.
_LOGIT = Tolerance(float32=2e-2, float16=2e-2, bfloat16=1e-1, int8=3e-1)


@dataclass(frozen=True, slots=True)
class Expected:
    """A query, a document, and what the model makes of them: a cosine similarity or a reranker's score."""

    query: str
    document: str
    number: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Numbers that a source prints for a model. Queries are embedded as QUERY, documents as DOCUMENT."""

    source: str
    pairs: tuple[Expected, ...]
    instruction: str | None = None  # None: the model's default
    tolerance: Tolerance = _UNIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to know of a model besides its folder. A field that is None: what the folder says counts."""

    source: str
    query: str | None = None  # put before a query; holds "{instruction}" if the model takes instructions
    document: str | None = None  # put before a document
    instruction: str | None = None  # the default instruction
    symmetric: str | None = None  # the instruction of SYMMETRIC; the whole prompt if the model takes no instructions
    end: str | None = None  # a token that is added after each text though tokenizer.json does not
    causal: bool | None = None
    pooling: Pooling | None = None
    score: Score | None = None
    max_tokens: int | None = None
    golden: Golden | None = None

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors: a row of a reranker says what its score is."""
        return self.score is None


Recipes = Mapping[str, Recipe]
"""Recipes by hub id."""

_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_SIMILAR = "Retrieve semantically similar text."
_INSTRUCT = "Instruct: {instruction}\nQuery: "  # with a space at its end, unlike Qwen3-Embedding's

_BEIJING = "The capital of China is Beijing."
_GRAVITY = (
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
    "responsible for the movement of planets around the sun."
)
_QWEN3_EMBEDDING_SOURCE = "the model's card; prompts are in its folder, and in models/qwen3/prompts.py"
_QWEN3_RERANKER_SOURCE = "the model's card; its prompt is in models/qwen3/prompts.py"

RECIPES: Recipes = {
    "Qwen/Qwen3-Embedding-0.6B": Recipe(
        source=_QWEN3_EMBEDDING_SOURCE,
        golden=Golden(
            source="the model's card",
            pairs=(
                Expected("What is the capital of China?", _BEIJING, 0.7646),
                Expected("What is the capital of China?", _GRAVITY, 0.1414),
                Expected("Explain gravity", _BEIJING, 0.1355),
                Expected("Explain gravity", _GRAVITY, 0.6000),
            ),
        ),
    ),
    "Qwen/Qwen3-Embedding-4B": Recipe(source=_QWEN3_EMBEDDING_SOURCE),
    "Qwen/Qwen3-Embedding-8B": Recipe(source=_QWEN3_EMBEDDING_SOURCE),
    "Qwen/Qwen3-Reranker-0.6B": Recipe(
        source=_QWEN3_RERANKER_SOURCE,
        score=Score.PROBABILITY,
        golden=Golden(
            source="the card's own pairs by the card's own code, in float32; the card prints no numbers",
            pairs=(
                Expected("What is the capital of China?", _BEIJING, 0.9995),
                Expected("Explain gravity", _GRAVITY, 0.9972),
            ),
        ),
    ),
    "Qwen/Qwen3-Reranker-4B": Recipe(source=_QWEN3_RERANKER_SOURCE, score=Score.PROBABILITY),
    "Qwen/Qwen3-Reranker-8B": Recipe(source=_QWEN3_RERANKER_SOURCE, score=Score.PROBABILITY),
    "BAAI/bge-m3": Recipe(
        source="FlagEmbedding 1.4.2 (inference/embedder/encoder_only/m3.py): dense vectors, no prompts",
        query="",
        document="",
        symmetric="",
        pooling=Pooling.FIRST,
    ),
    "BAAI/bge-small-en-v1.5": (
        _BGE_EN := Recipe(
            source="the model's card: the prompt is for short queries against passages, not for similarity",
            query="Represent this sentence for searching relevant passages: ",
            document="",
            symmetric="",
            pooling=Pooling.FIRST,
        )
    ),
    "BAAI/bge-base-en-v1.5": _BGE_EN,
    "BAAI/bge-large-en-v1.5": _BGE_EN,
    "intfloat/e5-small": (
        _E5 := Recipe(
            source="the model's card: each text begins with a prefix; query: on both sides of symmetric tasks",
            query="query: ",
            document="passage: ",
            symmetric="query: ",
            pooling=Pooling.MEAN,
        )
    ),
    "intfloat/e5-base": _E5,
    "intfloat/e5-large": _E5,
    "intfloat/e5-small-v2": _E5,
    "intfloat/e5-base-v2": _E5,
    "intfloat/e5-large-v2": _E5,
    "intfloat/multilingual-e5-small": _E5,
    "intfloat/multilingual-e5-base": _E5,
    "intfloat/multilingual-e5-large": _E5,
    "intfloat/multilingual-e5-large-instruct": Recipe(
        source="mteb models/e5_instruct.py; FlagEmbedding 1.4.2 model_mapping.py; tasks of microsoft/unilm e5/utils.py",
        query=_INSTRUCT,
        document="",
        instruction=_WEB_SEARCH,
        symmetric=_SIMILAR,
        pooling=Pooling.MEAN,
        max_tokens=512,
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Recipe(
        source="the model's card: no prompts; the folder says the rest", query="", document="", symmetric=""
    ),
    "richinfoai/ritrieve_zh_v1": Recipe(
        source=(
            "mteb models/richinfoai_models.py; pooling and head are those that its folder says, and not verified:"
            " its modules.json could not be read"
        ),
        query="",
        document="",
        symmetric="",
    ),
    "Alibaba-NLP/gte-Qwen2-7B-instruct": Recipe(
        source="mteb models/gte_models.py; text-embeddings-inference qwen2.rs (pull request 762); tokenization_qwen.py",
        query=_INSTRUCT,
        document="",
        instruction=_WEB_SEARCH,
        symmetric=_SIMILAR,
        end="<|endoftext|>",
        causal=False,
        pooling=Pooling.LAST,
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Recipe(
        source="as gte-Qwen2-7B-instruct; its mask is what its folder says (vLLM, pull requests 14609 and 18683)",
        query=_INSTRUCT,
        document="",
        instruction=_WEB_SEARCH,
        symmetric=_SIMILAR,
        end="<|endoftext|>",
        # The hub's config.json once said is_causal = true, and its code ran so; in 2025 it became false, and its code
        # was made to obey. A folder of either time is served as it says. The card's numbers have not been compared.
        causal=None,
        pooling=Pooling.LAST,
    ),
    "NovaSearch/stella_en_1.5B_v5": Recipe(
        source="the model's card and modules.json; mteb models/stella_models.py; the end token is gte-Qwen2's",
        query=_INSTRUCT,
        document="",
        instruction=f"{_WEB_SEARCH}.",  # the full stop counts
        symmetric=_SIMILAR,
        end="<|endoftext|>",
        causal=False,
        pooling=Pooling.MEAN,
        max_tokens=512,
    ),
    "BAAI/bge-reranker-v2-m3": Recipe(
        source="FlagEmbedding 1.4.2 (inference/reranker/encoder_only/base.py): raw logits unless normalize is set",
        score=Score.LOGIT,
    ),
    "jinaai/jina-reranker-v2-base-multilingual": Recipe(
        source="the model's card; vLLM models/roberta.py", score=Score.PROBABILITY, max_tokens=1024
    ),
    "Alibaba-NLP/gte-multilingual-reranker-base": Recipe(
        source="the model's card; transformers 5.24 models/gte",
        score=Score.LOGIT,
        golden=Golden(
            source="the model's card, computed in float16",
            pairs=(
                Expected("中国的首都在哪儿", "北京", 1.2315),
                Expected("what is the capital of China?", "北京", 0.5923),
                Expected("how to implement quick sort in python?", "Introduction of quick sort", 0.3041),
            ),
            tolerance=_LOGIT,
        ),
    ),
}


def recipe_of(name: str, recipes: Recipes = RECIPES) -> Recipe | None:
    """The recipe of a hub id, or of a folder that is named as the id's last part; case does not count."""
    wanted = name.casefold()
    for id_, recipe in recipes.items():
        if wanted in (id_.casefold(), id_.rpartition("/")[2].casefold()):
            return recipe
    return None
