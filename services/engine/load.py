"""Start-up: settings → checkpoint → model on its device, warmed up and checked against itself."""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from services.engine import golden, host, precision
from services.engine.calibration import random_texts
from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.fingerprint import fingerprint
from services.engine.checkpoint.sentence_transformers import longest_text
from services.engine.devices.base import Device
from services.engine.devices.cpu import Cpu
from services.engine.devices.cuda import Cuda
from services.engine.errors import CheckpointError, EngineError
from services.engine.jobs import Limits
from services.engine.layers.pooling import Pooling
from services.engine.models.base import Family, Model
from services.engine.models.recipes import RECIPES, Recipe, Recipes, recipe_of
from services.engine.models.registry import FAMILIES, Families, family_of
from services.engine.runner import Runner
from services.engine.text.tokenizer import Tokenizer
from services.engine.throughput import Throughput
from services.engine.types import EngineSettings, Ids, ModelInfo, Score, Vector

_MAX_TOKENS = 8192  # of one text, if the settings name no limit
# Tokens per batch. CPU: products of weights gain nothing past some 200 rows, but the documents of a rerank request
# share its prefix only within a batch; at 2048 the 0.6B model's products reach 32 MB, for which glibc asks the system
# each time, zeroed page by page. CUDA: enough to hide launches and fill the card.
_BATCH_TOKENS = {"cpu": 2000, "cuda": 16384}
# An interactive request may have to wait for a bulk batch: at most this many seconds of work, but no fewer tokens.
_BULK_S, _BULK_TOKENS = 0.5, 512
# Below this a step is bound by reading weights or launching kernels: tokens are nearly free.
_MIXED_TOKENS = {"cpu": 32, "cuda": 1024}
# Distance between two outputs for one text that rounding may explain; a wrong mask or position moves them much more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.int8: 5e-2}
_WARM_UP_TOKENS = (6, 24, 256)  # of a batch; and a full batch, if it takes less than so many seconds
_WARM_UP_S = 1.0
_NO_RECIPE = Recipe(source="the folder alone")
_PROBE = "Winnowing parts the grain from the chaff: thrown into the wind, what is light is carried off."


log = logging.getLogger("winnow.engine")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to serve."""

    info: ModelInfo
    family: Family
    tokenizer: Tokenizer
    runner: Runner
    limits: Limits
    throughput: Throughput


def load(
    settings: EngineSettings, *, embeds: bool, families: Families = FAMILIES, recipes: Recipes = RECIPES
) -> Loaded:
    """A model that makes vectors if it `embeds`, else scores. Blocking.

    Raises CheckpointError if the checkpoint is unsound, or the model disagrees with itself or with its card's numbers.
    """
    device, named = _placement(settings), precision.parse(settings.dtype)
    host.use_threads(settings.threads, settings.tokenizer_threads)
    checkpoint = Checkpoint.open(settings.model, settings.revision)
    family = family_of(checkpoint, families)
    config = family.config
    recipe = recipe_of(checkpoint.name, recipes) or _NO_RECIPE
    own_limit = recipe.max_tokens or longest_text(checkpoint.folder) or config.max_position_embeddings
    max_tokens = settings.max_tokens or min(_MAX_TOKENS, config.max_position_embeddings, own_limit)
    if not 64 <= max_tokens <= config.max_position_embeddings:
        raise CheckpointError(f"max_tokens is {max_tokens}; this model takes 64 to {config.max_position_embeddings}")
    if max_tokens > own_limit:
        log.warning(
            "%s: texts may hold %d tokens, but the model is made for %d", checkpoint.name, max_tokens, own_limit
        )
    tokenizer = Tokenizer(checkpoint.tokenizer_file, config.vocab_size)
    if tokenizer.vocab_size > config.vocab_size:
        log.warning(
            "%s: tokenizer.json has %d tokens, the model only %d; a text that holds one of the others is refused",
            *(checkpoint.name, tokenizer.vocab_size, config.vocab_size),
        )
    family.check(tokenizer, embeds=embeds)
    # One thread alone calls torch. Each that does gets OpenMP threads of its own; if these are more than the
    # processors, they sleep between two kernels and must be woken for each.
    model_thread = ThreadPoolExecutor(1, "model")
    try:
        built = model_thread.submit(_build, family, tokenizer, device, named, max_tokens, embeds=embeds).result()
    except BaseException:
        model_thread.shutdown(wait=False)
        raise
    batch_tokens = settings.batch_tokens or _BATCH_TOKENS[device.type]
    runner = Runner(built.device, model_thread)
    throughput = Throughput(_warm_up(runner, tokenizer, batch_tokens), batch_tokens)
    depth = 2 if built.device.overlaps else 1
    limits = Limits(
        batch=batch_tokens,
        bulk=min(depth * batch_tokens, max(_BULK_TOKENS, int(throughput.rate() * _BULK_S))),
        queue=settings.queue_tokens or max(32 * batch_tokens, 16 * max_tokens),
        queue_s=settings.queue_seconds,
        mixed=min(batch_tokens, _MIXED_TOKENS[device.type]),
        depth=depth,
    )
    width = _check_itself(runner, tokenizer, _TOLERANCE[built.dtype])
    dtype_name = str(built.dtype).removeprefix("torch.")
    info = ModelInfo(
        name=checkpoint.name,
        revision=checkpoint.revision,
        fingerprint=fingerprint(
            name=checkpoint.name,
            revision=checkpoint.revision,
            config=config,
            weights=built.weights_digest,
            tokenizer=hashlib.sha256(checkpoint.tokenizer_file.read_bytes()).hexdigest(),
            head=built.head,
            dtype=dtype_name,
            template=family.template_version,
        ),
        dimensions=width if embeds else 0,
        max_tokens=max_tokens,
        dtype=dtype_name,
        device=device.type,
        capabilities=family.capabilities(embeds=embeds),
        default_instruction=family.default_instruction,
        template_version=family.template_version,
        weights_digest=built.weights_digest,
    )
    if recipe.golden is not None:
        golden.check(recipe.golden, info, family, tokenizer, runner)
    return Loaded(info, family, tokenizer, runner, limits, throughput)


@dataclass(frozen=True, slots=True)
class _Built:
    """The model on its device, its number format, what is made of its states, and the digest of its weights."""

    device: Device
    dtype: torch.dtype
    head: str
    weights_digest: str


def _build(
    family: Family,
    tokenizer: Tokenizer,
    device: torch.device,
    named: torch.dtype | None,
    max_tokens: int,
    *,
    embeds: bool,
) -> _Built:
    dtype = precision.choose(named, device, family.sample())
    read = family.prepare(device, dtype)
    with ThreadPoolExecutor(1) as beside:  # after the probe, which it would disturb
        digest = beside.submit(family.tensors.digest)
        model = read(max_tokens)
        name, head = family.head(tokenizer, device, embeds=embeds)
        on_device = Cuda(model, head, device) if device.type == "cuda" else Cpu(model, head)
        name = _head_identity(name, model, Score.PROBABILITY if embeds else family.capabilities(embeds=False).score)
        return _Built(on_device, dtype, name, digest.result())


def _head_identity(head: str, model: Model, score: Score) -> str:
    """What is made of the hidden states, for the fingerprint: the head, and what a folder or a recipe may change.

    The usual is left out: a causal model, its last token, a probability.
    """
    parts = [head]
    if not model.causal:
        parts.append("attends in both directions")
    if model.pooling is not Pooling.LAST:
        parts.append(model.pooling.value)
    if score is not Score.PROBABILITY:
        parts.append(score.value)
    return ", ".join(parts)


def _placement(settings: EngineSettings) -> torch.device:
    kind = settings.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in _BATCH_TOKENS:
        raise CheckpointError(f"device {kind!r} is unknown: auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("device is cuda, but no CUDA device can be used; set it to cpu or auto")
    return torch.device(kind)


def _warm_up(runner: Runner, tokenizer: Tokenizer, batch_tokens: int) -> dict[int, float]:
    """Touches every weight and allocates; gives tokens per second by tokens of a batch, from one text to a full batch.

    Sizes that would take long are left out: from some hundred tokens on, a batch costs in proportion.
    """
    rates = dict[int, float]()
    for size in sorted({min(size, batch_tokens) for size in (*_WARM_UP_TOKENS, batch_tokens)}):
        if rates and size / rates[max(rates)] > _WARM_UP_S:
            break
        batch = random_texts(tokenizer.rows, size)
        seconds = []
        for _ in range(3):  # the first is slow; estimates from one too slow would refuse work that has time
            start = time.perf_counter()
            runner.run(batch)
            seconds.append(time.perf_counter() - start)
        tokens = sum(map(len, batch))
        rates[tokens] = tokens / min(seconds)
    return rates


def _check_itself(runner: Runner, tokenizer: Tokenizer, tolerance: float) -> int:
    """One text alone, and among others with which it shares prefixes, must give the same output. → Its width."""
    text = _probe(tokenizer)
    crowd: list[Ids] = [text[:3], text[::-1], np.concatenate([text, text]), text, np.concatenate([text, text[::-1]])]
    alone, together = _row(runner.run([text])[0]), _row(runner.run(crowd)[3])
    distance, size = np.linalg.norm(alone - together), np.linalg.norm(alone)
    if distance > tolerance * max(1.0, float(size)):
        raise CheckpointError("self-check failed: a text alone and the same text in a batch give different results")
    return len(alone)


def _probe(tokenizer: Tokenizer) -> Ids:
    return np.minimum(tokenizer.encode([_PROBE])[0][:24], tokenizer.rows - 1)


def _row(output: Vector | EngineError) -> Vector:
    if isinstance(output, EngineError):
        raise CheckpointError(f"self-check failed: {output}")
    return output
