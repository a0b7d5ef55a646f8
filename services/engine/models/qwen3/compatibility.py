"""Whether a folder is what a worker serves: the files beside the weights say how the model is meant to be used.

A model that is used in another way than ours would be served wrongly, and in silence. It is refused by name.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.folder import read_json, read_json_value
from services.engine.errors import CheckpointError
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, EMBED_END, EMBED_QUERY, EmbedPrompts, RerankPrompts
from services.engine.text.tokenizer import Tokenizer

log = logging.getLogger("winnow.engine")

_LIBRARY = "sentence_transformers."
_QUERY = re.compile(re.escape(EMBED_QUERY).replace(re.escape("{instruction}"), r"[^\n]+"))
_DOCUMENTS = ("document", "passage", "corpus")
_NO_RERANKER = "this is an embedding model, not a reranker; serve it by the embed worker"
_POOLING_MODES = {  # as sentence-transformers named them before version 5.4
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def check(checkpoint: Checkpoint, tokenizer: Tokenizer, *, embeds: bool) -> None:
    """Raises CheckpointError for a model that is used otherwise than the worker's kind of models."""
    if any(checkpoint.folder.glob("*quant*_config.json")) and not checkpoint.raw_config.get("quantization_config"):
        (file, *_) = sorted(path.name for path in checkpoint.folder.glob("*quant*_config.json"))
        raise CheckpointError(f"{checkpoint.name}: {file}: quantised checkpoints are not served; give the original one")
    if _optional(checkpoint.folder / "tokenizer_config.json").get("auto_map"):
        raise CheckpointError(f"{checkpoint.name}: tokenizer_config.json: auto_map: its own code is never run")
    if embeds:
        _check_embedder(checkpoint, tokenizer)
    else:
        _check_reranker(checkpoint, tokenizer)


def longest_text(folder: Path) -> int | None:
    """The tokens at which sentence-transformers cuts a text for this model, if it names a number."""
    named = [
        _optional(folder / "sentence_bert_config.json").get("max_seq_length"),
        _optional(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    # transformers writes 1e30 for "no limit".
    numbers = [value for value in named if isinstance(value, int | float) and 1 < value < 1e9]
    return int(min(numbers)) if numbers else None


def _check_embedder(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    name, folder = checkpoint.name, checkpoint.folder
    if "retrieval_weight" in _optional(folder / "winnow.json"):
        raise CheckpointError(f"{name}: winnow.json has a retrieval_weight: this is a reranker, not an embedding model")
    EmbedPrompts(tokenizer).check()
    modules = _modules(_home(folder))
    kinds = [kind for kind, _ in modules]
    settings = _optional(_home(folder) / "config_sentence_transformers.json")
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
        if kind == "Pooling":
            _check_pooling(name, path / "config.json")
    _check_prompts(name, settings)
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot") or (similarity == "dot" and modules and "Normalize" not in kinds):
        raise CheckpointError(
            f"{name}: config_sentence_transformers.json: similarity_fn_name is {similarity!r}, but vectors are served"
            " at unit length and compared by cosine"
        )
    if _optional(folder / "sentence_bert_config.json").get("do_lower_case"):
        raise CheckpointError(f"{name}: sentence_bert_config.json: do_lower_case is not supported")
    _check_end(name, tokenizer, declared=bool(modules or settings))


def _check_reranker(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    name, folder = checkpoint.name, checkpoint.folder
    if "Qwen3Model" in (checkpoint.raw_config.get("architectures") or ()):
        raise CheckpointError(f"{name}: config.json: architectures = ['Qwen3Model']: {_NO_RERANKER}")
    modules = _modules(_home(folder))
    kinds = [kind for kind, _ in modules]
    settings = _optional(_home(folder) / "config_sentence_transformers.json")
    if settings.get("model_type", "CrossEncoder") != "CrossEncoder" or "Pooling" in kinds:
        file = "modules.json" if "Pooling" in kinds else "config_sentence_transformers.json"
        raise CheckpointError(f"{name}: {file}: {_NO_RERANKER}")
    if modules and kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
        raise CheckpointError(
            f"{name}: modules.json: {', '.join(kinds)} is not served, only Transformer and LogitScore"
        )
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
    default = _prompts(settings).get(settings.get("default_prompt_name"))
    if default and default != DEFAULT_INSTRUCTION:  # any request may bring its own, so this is no reason to refuse
        log.warning(
            "%s: its default instruction is %r; here it is %r, so send the model's own with each request",
            *(name, default, DEFAULT_INSTRUCTION),
        )
    if not checkpoint.has_prefix:
        raise CheckpointError(f"{name}: its tensors are named as a Qwen3Model's (norm.weight): {_NO_RERANKER}")
    before, after = tokenizer.framed()
    if len(before) or [*after] not in ([], [tokenizer.single(EMBED_END)]):
        raise CheckpointError(
            f"{name}: tokenizer.json: its post_processor adds tokens that a reranker's prompt has not"
        )
    if len(after):
        log.warning("%s: tokenizer.json adds %s to a text; the reranker's prompt is built without it", name, EMBED_END)


def _check_pooling(name: str, file: Path) -> None:
    pooling = read_json(file)
    mode = pooling.get("pooling_mode")
    if mode is None:
        mode = [mode for key, mode in _POOLING_MODES.items() if pooling.get(key)] or ["mean"]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if modes != ["lasttoken"]:
        raise CheckpointError(
            f"{name}: {file.parent.name}/config.json: pooling by {' and '.join(map(str, modes))} is not served, only by"
            " the last token (lasttoken)"
        )


def _check_prompts(name: str, settings: Mapping[str, Any]) -> None:
    """Ours are put before texts whatever the folder says, so it must say the same."""
    at, prompts = f"{name}: config_sentence_transformers.json", _prompts(settings)
    if prompts.get(default := settings.get("default_prompt_name")):
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


def _prompts(settings: Mapping[str, Any]) -> dict[object, str]:
    prompts = settings.get("prompts") or {}
    return {name: str(prompt or "") for name, prompt in prompts.items()} if isinstance(prompts, Mapping) else {}


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


def _home(folder: Path) -> Path:
    """Where sentence-transformers' files lie: here, or one up if this is the first of that folder's modules."""
    above = folder.parent / "modules.json"
    if (folder / "modules.json").is_file() or not above.is_file():
        return folder
    return folder.parent if folder.name in (path.name for _, path in _listed(above)) else folder


def _modules(home: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each sentence-transformers module, in order; none if the folder says nothing of them."""
    file = home / "modules.json"
    if file.is_file():
        for kind, _ in _listed(file):
            if not kind.startswith(_LIBRARY):
                raise CheckpointError(f"{home.name}: modules.json: {kind} is code of its own, which is never run")
        return [(kind.rpartition(".")[2], path) for kind, path in _listed(file)]
    # Modules whose list was left behind: their folders are called 1_Pooling, 2_Dense and so on.
    loose = [path.parent for path in sorted(home.glob("[0-9]_*/config.json"))]
    return [("Transformer", home), *((path.name.split("_")[1], path) for path in loose)] if loose else []


def _listed(file: Path) -> list[tuple[str, Path]]:
    """Type and folder of each module in modules.json."""
    try:
        return [(str(module["type"]), file.parent / str(module["path"])) for module in read_json_value(file)]
    except (TypeError, KeyError):
        raise CheckpointError(f"{file.parent.name}: modules.json is not a list of modules") from None


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
