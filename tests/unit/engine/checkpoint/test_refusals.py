"""What no family serves is refused before any of it is read."""

import json
from pathlib import Path

import pytest

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.refusals import refuse_own_code, refuse_quantised
from services.engine.errors import CheckpointError
from services.engine.models.registry import FAMILIES, family_of
from tests.support.checkpoints import tokenizer


def checkpoint(folder: Path, **config: object) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    return Checkpoint.open(str(folder))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_quantised_weights_are_refused_for_each_family(tmp_path: Path, model_type: str) -> None:
    awq = checkpoint(tmp_path, model_type=model_type, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"config\.json: quantization_config: .*AWQ, 4 bits"):
        family_of(awq, FAMILIES)
    (tmp_path / "quantize_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json: quantised"):
        family_of(checkpoint(tmp_path, model_type=model_type), FAMILIES)


def test_quantised_weights_are_refused_by_their_own_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: .*bitsandbytes, 8 bits"):
        refuse_quantised(
            checkpoint(tmp_path, compression_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
        )


def test_code_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: auto_map = .*modeling\.Own.* never run"):
        refuse_own_code(checkpoint(tmp_path, auto_map={"AutoModel": "modeling.Own"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.T", None]}}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: auto_map"):
        refuse_own_code(checkpoint(tmp_path))


def test_a_plain_checkpoint_passes(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path, model_type="qwen3", quantization_config=None, auto_map={})
    refuse_quantised(plain)
    refuse_own_code(plain)
