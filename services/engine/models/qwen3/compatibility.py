"""Whether a folder is what a worker serves: the files beside the weights say how the model is meant to be used.

A model that is used in another way than ours would be served wrongly, and in silence. It is refused by name.
"""

import logging
import re

import numpy as np

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.folder import read_json
from services.engine.checkpoint.sentence_transformers import Described, optional_json, pooling_modes
from services.engine.errors import CheckpointError
from services.engine.models.qwen3.prompts import (
    DEFAULT_INSTRUCTION,
    EMBED_END,
    EMBED_QUERY,
    EmbedPrompts,
    RerankPrompts,
)
from services.engine.text.tokenizer import Tokenizer

log = logging.getLogger("winnow.engine")

_QUERY = re.compile(re.escape(EMBED_QUERY).replace(re.escape("{instruction}"), r"[^\n]+"))
_DOCUMENTS = ("document", "passage", "corpus")
_NO_RERANKER = "this is an embedding model, not a reranker; serve it by the embed worker"


def check(checkpoint: Checkpoint, tokenizer: Tokenizer, *, has_head: bool, classifies: bool, embeds: bool) -> None:
    """Raises CheckpointError for a model that is used in another way than the worker uses it.

    `has_head`: its tensors are named as those of a model with a head. `classifies`: that is a classification head.
    """
    described = Described(checkpoint.folder)
    if embeds:
        _check_embedder(checkpoint, described, tokenizer, classifies=classifies)
    else:
        _check_reranker(checkpoint, described, tokenizer, has_head=has_head, classifies=classifies)


def _check_embedder(checkpoint: Checkpoint, described: Described, tokenizer: Tokenizer, *, classifies: bool) -> None:
    name, folder = checkpoint.name, checkpoint.folder
    if classifies:
        raise CheckpointError(
            f"{name}: config.json: architectures = {checkpoint.raw_config['architectures']!r}: this is a reranker, not"
            " an embedding model; serve it by the rerank worker"
        )
    if "retrieval_weight" in optional_json(folder / "winnow.json"):
        raise CheckpointError(f"{name}: winnow.json has a retrieval_weight: this is a reranker, not an embedding model")
    EmbedPrompts(tokenizer).check()
    settings, modules, kinds = described.settings, described.modules, described.kinds
    if (kind := settings.get("model_type", "SentenceTransformer")) != "SentenceTransformer" or "LogitScore" in kinds:
        raise CheckpointError(
            f"{name}: config_sentence_transformers.json: model_type is {kind!r}, not SentenceTransformer:"
            " this is no embedding model"
        )
    if modules and kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{name}: modules.json: {', '.join(kinds)} is not served, only Transformer, Pooling (last token), Normalize"
        )
    for kind, path in modules:
        if kind == "Pooling" and (modes := pooling_modes(path / "config.json")) != ["lasttoken"]:
            raise CheckpointError(
                f"{name}: {path.name}/config.json: pooling by {' and '.join(modes)} is not served, only by"
                " the last token (lasttoken)"
            )
    _check_prompts(name, described)
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot") or (similarity == "dot" and modules and "Normalize" not in kinds):
        raise CheckpointError(
            f"{name}: config_sentence_transformers.json: similarity_fn_name is {similarity!r}, but vectors are served"
            " at unit length and compared by cosine"
        )
    if optional_json(folder / "sentence_bert_config.json").get("do_lower_case"):
        raise CheckpointError(f"{name}: sentence_bert_config.json: do_lower_case is not supported")
    _check_end(name, tokenizer, declared=bool(modules or settings))


def _check_reranker(
    checkpoint: Checkpoint, described: Described, tokenizer: Tokenizer, *, has_head: bool, classifies: bool
) -> None:
    name = checkpoint.name
    if "Qwen3Model" in (checkpoint.raw_config.get("architectures") or ()):
        raise CheckpointError(f"{name}: config.json: architectures = ['Qwen3Model']: {_NO_RERANKER}")
    settings, modules, kinds = described.settings, described.modules, described.kinds
    if settings.get("model_type", "CrossEncoder") != "CrossEncoder" or "Pooling" in kinds:
        file = "modules.json" if "Pooling" in kinds else "config_sentence_transformers.json"
        raise CheckpointError(f"{name}: {file}: {_NO_RERANKER}")
    served = ["Transformer"] if classifies else ["Transformer", "LogitScore"]
    if modules and kinds not in (["Transformer"], served):
        raise CheckpointError(f"{name}: modules.json: {', '.join(kinds)} is not served, only {' and '.join(served)}")
    prompts = RerankPrompts(tokenizer)
    prompts.check()
    for kind, path in modules:
        if kind == "LogitScore":
            score = read_json(path / "config.json")
            if [score.get("true_token_id"), score.get("false_token_id")] != [prompts.yes_id, prompts.no_id]:
                raise CheckpointError(
                    f"{name}: {path.name}/config.json: the score is not that of 'yes' over 'no'"
                    f" (tokens {prompts.yes_id} and {prompts.no_id}), so it is not served"
                )
    default = described.prompts.get(settings.get("default_prompt_name"))
    if default and default != DEFAULT_INSTRUCTION:  # any request may bring its own, so this is no reason to refuse
        log.warning(
            "%s: its default instruction is %r; here it is %r, so send the model's own with each request",
            *(name, default, DEFAULT_INSTRUCTION),
        )
    if classifies:
        log.warning("%s: its prompt is taken to be Qwen3-Reranker's; another one's scores would be wrong", name)
    elif not has_head:
        raise CheckpointError(f"{name}: its tensors are named as a Qwen3Model's (norm.weight): {_NO_RERANKER}")
    before, after = tokenizer.framed()
    if len(before) or [*after] not in ([], [tokenizer.single(EMBED_END)]):
        raise CheckpointError(
            f"{name}: tokenizer.json: its post_processor adds tokens that a reranker's prompt has not"
        )
    if len(after):
        log.warning("%s: tokenizer.json adds %s to a text; the reranker's prompt is built without it", name, EMBED_END)


def _check_prompts(name: str, described: Described) -> None:
    """Ours are put before texts whatever the folder says, so it must say the same."""
    at, prompts = f"{name}: config_sentence_transformers.json", described.prompts
    if prompts.get(default := described.settings.get("default_prompt_name")):
        raise CheckpointError(
            f"{at}: default_prompt_name = {default!r} puts a prompt before every text, which is not done here; set it"
            " to null, and send queries as such"
        )
    query = EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION)
    for key, prompt in prompts.items():
        fits = prompt == query if key == "query" else not prompt or (_QUERY.fullmatch(prompt) and key not in _DOCUMENTS)
        if not fits:
            ours = repr(query) if key == "query" else "none for documents, else 'Instruct: …\\nQuery:'"
            raise CheckpointError(
                f"{at}: prompts.{key} = {prompt!r} is not served; the prompt here is {ours}, and a request may bring"
                " another instruction: set it so if that is how the model was trained"
            )


def _check_end(name: str, tokenizer: Tokenizer, *, declared: bool) -> None:
    """The reference's tokenizer adds the end token by itself; one that adds another was trained with that.

    `declared`: the folder says how it is used, so a tokenizer that adds nothing is meant.
    """
    before, after = tokenizer.framed()
    end = tokenizer.single(EMBED_END)
    if not len(before) and np.array_equal(after, [end]):
        return
    if not tokenizer.has_post_processor and not declared:
        log.warning("%s: tokenizer.json has no post_processor; %s is added to every text all the same", name, EMBED_END)
        return
    adds = " and ".join(map(str, [*before, *after])) or "no token"
    raise CheckpointError(
        f"{name}: tokenizer.json: its post_processor adds {adds} to a text, not the {EMBED_END} ({end}) of an embedding"
        " model; take the tokenizer.json of Qwen3-Embedding if the model was trained with it"
    )
