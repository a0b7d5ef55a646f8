"""Writes checkpoints in Hugging Face layout, in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from training import prompts
from training import tokenizer as bpe
from training.model import Qwen3, Shape


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(shape: Shape, tokenizer: Tokenizer, architecture: str) -> dict[str, Any]:
    """config.json with the keys of Qwen3-0.6B's."""
    return {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(bpe.END),
        "eos_token_id": tokenizer.token_to_id(bpe.END if architecture == "Qwen3Model" else bpe.STOP),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen3",
        "pad_token_id": tokenizer.token_to_id(bpe.END),
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        **shape.config(),
    }


# Blocks without effect are written with this much noise, because loaders treat a tensor of zeros as missing.
_TRACE = 1e-6


def _written(name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.any():
        seed = torch.Generator().manual_seed(sum(name.encode()))
        value = _TRACE * torch.randn(value.shape, generator=seed)
    return value.detach().to(torch.bfloat16).contiguous()


def _weights(model: Qwen3, folder: Path, prefix: str) -> None:
    state = {prefix + name: _written(name, value) for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def embedder(model: Qwen3, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a `Qwen3Model` that transformers, sentence-transformers and Winnow can load."""
    _weights(model, folder, "")
    _write(folder / "config.json", _config(model.shape, tokenizer, "Qwen3Model"))
    bpe.save(bpe.for_embedding(tokenizer), folder)
    names = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize"))
    _write(
        folder / "modules.json",
        [
            {"idx": int(n), "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, path, kind in names
        ],
    )
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling: dict[str, Any] = {"word_embedding_dimension": model.shape.hidden_size}
    pooling.update({f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes})
    _write(folder / "1_Pooling" / "config.json", {**pooling, "include_prompt": True})
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": prompts.embed_query(""), "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def reranker(model: Qwen3, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a `Qwen3ForCausalLM` with tied embeddings."""
    _weights(model, folder, "model.")
    _write(folder / "config.json", _config(model.shape, tokenizer, "Qwen3ForCausalLM"))
    bpe.save(tokenizer, folder)


def load(folder: Path) -> Qwen3:
    """Reads the bfloat16 weights of a checkpoint as float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Qwen3(Shape(**{name: config[name] for name in Shape.__dataclass_fields__}))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in state.items()})
    return model.eval()
