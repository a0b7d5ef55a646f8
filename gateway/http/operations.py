"""All operations."""

from gateway.http import answers, cohere, errors, openai, rerank, retrieval, tei
from gateway.http.operation import Api, Operation
from gateway.http.retrieval import path, unary
from winnow.retrieval.v1 import retrieval_pb2 as pb

_OPENAI = Api(errors.openai_shape, answers.OPENAI_ERROR)
_RERANK = Api(errors.rerank_shape, answers.RERANK_ERROR)
_COHERE = Api(errors.cohere_shape, answers.COHERE_ERROR)
_TEI = Api(errors.tei_shape, answers.TEI_ERROR)
_OURS = Api(errors.status_shape, answers.STATUS_ERROR)

_INPUT = {"texts": "input"}
_INPUTS = {"texts": "inputs"}
_TEXTS = {"documents": "texts"}

_COLLECTION = "/v1/collections/{name}"
_DOCUMENTS = "/v1/collections/{name}/documents"
_ALIAS = "/v1/aliases/{alias}"

OPERATIONS = (
    Operation(
        "POST",
        "/v1/embeddings",
        openai.embeddings,
        _OPENAI,
        "Embeds texts, as OpenAI does.",
        openai.EmbeddingsRequest,
        answers.EMBEDDINGS,
        _INPUT,
    ),
    Operation("GET", "/v1/models", openai.models, _OPENAI, "Lists the models, as OpenAI does.", None, answers.MODELS),
    Operation("GET", "/v1/models/{id:path}", openai.model, _OPENAI, "Describes a model.", None, answers.MODEL),
    Operation(
        "POST",
        "/v1/rerank",
        rerank.rerank_v1,
        _RERANK,
        "Reranks documents, as Jina, vLLM and Cohere's first version do.",
        rerank.RerankRequest,
        answers.RERANK_V1,
    ),
    Operation(
        "POST",
        "/v2/rerank",
        rerank.rerank_v2,
        _COHERE,
        "Reranks documents, as Cohere does.",
        rerank.RerankRequest,
        answers.RERANK_V2,
    ),
    Operation(
        "POST",
        "/v2/embed",
        cohere.embed_v2,
        _COHERE,
        "Embeds texts, as Cohere does.",
        cohere.EmbedRequest,
        answers.COHERE_EMBED,
    ),
    Operation(
        "POST",
        "/v1/embed",
        cohere.embed_v1,
        _COHERE,
        "Embeds texts, as Cohere's first version does.",
        cohere.EmbedRequest,
        answers.COHERE_EMBED_V1,
    ),
    Operation(
        "POST",
        "/embed",
        tei.embed,
        _TEI,
        "Embeds texts, as TEI does.",
        tei.EmbedRequest,
        answers.TEI_EMBED,
        _INPUTS,
    ),
    Operation(
        "POST",
        "/rerank",
        tei.rerank,
        _TEI,
        "Reranks texts, as TEI does.",
        tei.RerankRequest,
        answers.TEI_RERANK,
        _TEXTS,
    ),
    Operation("POST", "/predict", tei.predict, _TEI, "Always refused: no classifier is served.", None, {}),
    Operation("GET", "/info", tei.info, _TEI, "Describes the embedding model, as TEI does.", None, answers.TEI_INFO),
    Operation(
        "POST",
        "/v1/search",
        unary("Search", pb.SearchRequest, pb.SearchResponse, path()),
        _OURS,
        "Retrieves, then reranks.",
        pb.SearchRequest,
        pb.SearchResponse,
    ),
    Operation(
        "GET",
        "/v1/collections",
        unary("ListCollections", pb.ListCollectionsRequest, pb.ListCollectionsResponse, retrieval.page),
        _OURS,
        "Lists collections, sorted by name, in pages.",
        None,
        pb.ListCollectionsResponse,
        query=("page_size", "page_token"),
    ),
    Operation(
        "POST",
        "/v1/collections",
        unary("CreateCollection", pb.CreateCollectionRequest, pb.CreateCollectionResponse, path()),
        _OURS,
        "Creates an empty collection.",
        pb.CreateCollectionRequest,
        pb.CreateCollectionResponse,
    ),
    Operation(
        "GET",
        _COLLECTION,
        unary("GetCollection", pb.GetCollectionRequest, pb.GetCollectionResponse, path(name="name")),
        _OURS,
        "Describes a collection, by its name or an alias.",
        None,
        pb.GetCollectionResponse,
    ),
    Operation(
        "DELETE",
        _COLLECTION,
        unary("DeleteCollection", pb.DeleteCollectionRequest, pb.DeleteCollectionResponse, path(name="name")),
        _OURS,
        "Deletes a collection with its documents and aliases.",
        None,
        pb.DeleteCollectionResponse,
    ),
    Operation(
        "POST",
        _DOCUMENTS,
        retrieval.upsert,
        _OURS,
        "Adds or replaces documents, one a line; the response has an UpsertResult a line.",
        pb.Document,
        pb.UpsertResult,
        streams=True,
    ),
    Operation(
        "GET",
        _DOCUMENTS,
        unary("GetDocuments", pb.GetDocumentsRequest, pb.GetDocumentsResponse, retrieval.ids),
        _OURS,
        "Reads documents.",
        None,
        pb.GetDocumentsResponse,
        query=("ids",),
    ),
    Operation(
        "DELETE",
        _DOCUMENTS,
        unary("DeleteDocuments", pb.DeleteDocumentsRequest, pb.DeleteDocumentsResponse, retrieval.ids),
        _OURS,
        "Deletes documents.",
        None,
        pb.DeleteDocumentsResponse,
        query=("ids",),
    ),
    Operation(
        "PUT",
        _ALIAS,
        unary("SetAlias", pb.SetAliasRequest, pb.SetAliasResponse, path(alias="alias")),
        _OURS,
        "Points an alias to a collection.",
        pb.SetAliasRequest,
        pb.SetAliasResponse,
    ),
    Operation(
        "DELETE",
        _ALIAS,
        unary("DeleteAlias", pb.DeleteAliasRequest, pb.DeleteAliasResponse, path(alias="alias")),
        _OURS,
        "Deletes an alias.",
        None,
        pb.DeleteAliasResponse,
    ),
)
