"""What a model has to multiply: the products of its layers with weights, and its attention."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.shapes import is_encoder
from services.engine.checkpoint.sentence_transformers import Described, pooling_modes


@dataclass(frozen=True, slots=True)
class Architecture:
    """`products`: `[out, in]` of a layer's. `queries`, `keys`: widths of all heads of each kind.

    `causal`: a token sees only those before it. `whole`: the pooling reads all tokens, not one of each text.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    products: dict[str, tuple[int, int]]
    causal: bool
    whole: bool

    @classmethod
    def of(cls, folder: Path) -> Self:
        """A checkpoint's, by its config.json and the module of sentence-transformers that pools."""
        config = json.loads((folder / "config.json").read_text())
        hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
        up = {"gate_up": (2 * inner, hidden)} if config["hidden_act"] == "silu" else {"up": (inner, hidden)}
        attention = {"qkv": (queries + 2 * keys, hidden), "o": (hidden, queries)}
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            queries=queries,
            keys=keys,
            products=attention | up | {"down": (hidden, inner)},
            causal=not is_encoder(config),
            whole=pools_all(folder),
        )

    def linear_flops(self, tokens: int, texts: int) -> float:
        """Multiplications and additions with weights for `tokens` computed tokens of `texts` texts.

        The last layer needs keys and values of all tokens, but everything else for the tokens alone that are pooled.
        """
        layer = sum(2 * rows * columns for rows, columns in self.products.values())
        keys_values = 2 * 2 * self.keys * self.hidden
        pooled = tokens if self.whole else texts
        return float((self.layers - 1) * layer * tokens + keys_values * tokens + (layer - keys_values) * pooled)

    def attention_flops(self, lengths: Sequence[int]) -> float:
        """FLOPs of attention over texts of these lengths, with nothing shared: 4 x width per (query, key) pair."""
        pairs = sum(length * (length + 1) / 2 if self.causal else length * length for length in lengths)
        return 4.0 * self.layers * self.queries * pairs


def pools_all(folder: Path) -> bool:
    """Whether a checkpoint's vectors are means of all tokens, as its files for sentence-transformers say."""
    files = [path / "config.json" for kind, path in Described(folder).modules if kind == "Pooling"]
    return any("mean" in pooling_modes(file) for file in files)
