"""The fingerprint: one value for everything that decides a model's results."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def fingerprint(
    *,
    name: str,
    revision: str,
    config: "DataclassInstance",
    weights: str,
    tokenizer: str,
    head: str,
    dtype: str,
    template: str,
) -> str:
    """32 hexadecimal digits; equal ones give equal results.

    `config` counts by its values, so that config.json may be laid out anew or name another version of transformers.
    `weights` and `tokenizer` are digests, `template` is a version, `head` says how tokens see each other
    and what is made of their last hidden states.
    """
    identity = {
        "name": name,
        "revision": revision,
        "config": asdict(config),
        "weights": weights,
        "tokenizer": tokenizer,
        "head": head,
        "dtype": dtype,
        "template": template,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
