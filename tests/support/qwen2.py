"""Tiny random Qwen2 embedding models, saved by transformers and sentence-transformers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from services.engine.layers.pooling import Pooling
from tests.support.checkpoints import appends, edit_config, tokenizer

END = "<|endoftext|>"
_MODES = {Pooling.LAST: "lasttoken", Pooling.MEAN: "mean"}


def save(
    folder: Path,
    *,
    causal: bool | None,
    pooling: Pooling = Pooling.LAST,
    width: int | None = None,
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ends: bool = True,
    max_tokens: int = 300,
    dtype: torch.dtype = torch.float32,
    with_head: bool = False,
) -> Path:
    """Writes a model. `causal`: None leaves is_causal out of config.json. `width`: of a Dense module after the pooling;
    None: there is none. `ends`: tokenizer.json adds the end token. `with_head`: a Qwen2ForCausalLM."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

    words = tokenizer()
    config = Qwen2Config(
        vocab_size=words.get_vocab_size() + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )  # fmt: skip
    model = (Qwen2ForCausalLM if with_head else Qwen2Model)(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than the usual start, so that attention is far from uniform and errors show.
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2 if "norm" in name else 0.15)
    inner = folder / "inner"
    model.to(dtype).save_pretrained(inner)  # type: ignore[arg-type] # its decorator hides the overloads
    edit_config(inner, is_causal=causal)
    appends(words, *([END] if ends else [])).save(str(inner / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": END, "model_max_length": max_tokens}
    (inner / "tokenizer_config.json").write_text(json.dumps(named))
    transformer = Transformer(str(inner), max_seq_length=max_tokens)
    modules = [transformer, PoolingModule(64, pooling_mode=_MODES[pooling])]
    if width is not None:
        dense = Dense(64, width, activation_function=activation or torch.nn.Identity())
        torch.nn.init.normal_(dense.linear.bias)
        modules.append(dense)
    SentenceTransformer(modules=[*modules, Normalize()], device="cpu").save_pretrained(str(folder / "whole"))
    return folder / "whole"


def edit_json(file: Path, **changes: object) -> None:
    """Changes keys of a JSON object."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def vectors(folder: Path, texts: Sequence[str], prompt: str = "") -> np.ndarray:
    """Unit vectors `[n, width]` by sentence-transformers in fp32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    found: np.ndarray = model.encode(list(texts), prompt=prompt, batch_size=4, show_progress_bar=False)
    return found
