"""Prompts, as a folder says them for sentence-transformers. A recipe knows better."""

import logging

from services.engine.checkpoint.sentence_transformers import Described
from services.engine.errors import CheckpointError
from services.engine.models.recipes import Recipe
from services.engine.text.templates import INSTRUCTION, Wording

_DOCUMENTS = ("document", "passage", "corpus")  # the first that is there, as in encode_document

log = logging.getLogger("winnow.engine")


def wording(name: str, described: Described, recipe: Recipe | None) -> Wording:
    """The prompts of the embedding model `name`.

    Queries and documents are what `encode_query` and `encode_document` make of them, to which the default prompt does
    not apply; symmetric texts are what `encode` makes of them, to which it does. Without a default, a model with other
    prompts has none for symmetric texts. One for passages, or the corpus, is one for documents, if there is no other:
    so says `encode_document`, though its version 6 takes none.

    Raises CheckpointError for a default prompt that is not there.
    """
    prompts, default = described.prompts, ""
    if key := described.settings.get("default_prompt_name"):
        if key not in prompts:
            raise CheckpointError(
                f"{name}: config_sentence_transformers.json: default_prompt_name is {key!r}, but no prompt is named so"
            )
        default = prompts[key]
    query = prompts.get("query", "")
    document = next((prompts[kind] for kind in _DOCUMENTS if kind in prompts), "")
    symmetric = default if key or not (query or document) else None
    if recipe is None:
        return Wording(query=query, document=document, symmetric=symmetric)
    if recipe.query is not None and query not in ("", recipe.query.replace(INSTRUCTION, recipe.instruction or "")):
        log.warning(
            "%s: its folder puts %r before queries; %r counts, as %s says", *(name, query, recipe.query, recipe.source)
        )
    return Wording(
        query=query if recipe.query is None else recipe.query,
        document=document if recipe.document is None else recipe.document,
        instruction=recipe.instruction or "",
        symmetric=symmetric if recipe.symmetric is None else recipe.symmetric,
        end=recipe.end or "",
    )
