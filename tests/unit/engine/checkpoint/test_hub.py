"""A hub id: the cache before the network, a hub that never answers, and what the hub refuses."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.errors import CheckpointError
from services.engine.models.registry import FAMILIES, family_of
from tests.support.checkpoints import edit_config
from tests.support.hub import COMMIT, hub

MODEL = "acme/tiny"
PATIENCE_S = 120  # on a busy machine; a process that hangs would take for ever
OPEN = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from services.engine.errors import CheckpointError
from services.engine.models.registry import FAMILIES, family_of
from services.engine.checkpoint.hub import snapshot
try:
    print("opened", snapshot(sys.argv[1], sys.argv[2] or None).name)
except CheckpointError as error:
    print("refused", error)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def model(checkpoints: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder that the hub serves: in parts, with a file that only the guard reads."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoints(max_shard_size="200KB"), folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    (folder / "README.md").write_text("not needed")
    return folder


def opened(endpoint: str, cache: Path, revision: str = "") -> str:
    """What a process says that opens the model with this hub and cache."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_ETAG_TIMEOUT": "2"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", OPEN, MODEL, revision],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    return ran.stdout


def by_hand(cache: Path, model: Path) -> Path:
    """A cache as any version of the hub's library lays it out, without a list of what it should hold."""
    home = cache / "models--acme--tiny"
    snapshot = home / "snapshots" / COMMIT
    for file in (file for file in model.rglob("*") if file.is_file()):
        name = "-".join(file.relative_to(model).parts)
        blob, link = home / "blobs" / name, snapshot / file.relative_to(model)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_model_in_the_cache_starts_without_the_hub(silent: str, cache: Path, model: Path, revision: str) -> None:
    by_hand(cache, model)
    said = opened(silent, cache, revision)
    assert f"opened {COMMIT}" in said
    if revision != COMMIT:  # another commit may be the newest
        assert f"commit {COMMIT} from the local cache" in said
        assert "hf download acme/tiny" in said


def test_what_was_downloaded_once_starts_without_the_hub(silent: str, cache: Path, model: Path) -> None:
    with hub(MODEL, model) as served:
        said = opened(served.url, cache)
        assert "downloading it from the hub" in said
        assert f"opened {COMMIT}" in said
    assert f"opened {COMMIT}" in opened(silent, cache)
    snapshot = cache / "models--acme--tiny" / "snapshots" / COMMIT
    assert (snapshot / "1_Pooling" / "config.json").is_file()
    assert not (snapshot / "README.md").exists()


@pytest.mark.parametrize("lost", ["model-00001-of-*.safetensors", "tokenizer.json", "config.json"])
def test_a_cache_with_a_hole_is_filled_from_the_hub(cache: Path, model: Path, lost: str) -> None:
    (hole,) = by_hand(cache, model).glob(lost)
    hole.unlink()
    with hub(MODEL, model) as served:
        assert f"opened {COMMIT}" in opened(served.url, cache)


def test_a_link_that_points_nowhere_is_a_hole(cache: Path, checkpoints: Callable[..., Path]) -> None:
    (by_hand(cache, checkpoints()) / "model.safetensors").resolve().unlink()
    with hub(MODEL, checkpoints()) as served:
        assert f"opened {COMMIT}" in opened(served.url, cache)


def test_a_hub_that_never_answers_is_told_and_not_waited_for(silent: str, cache: Path, model: Path) -> None:
    assert "the hub does not answer" in opened(silent, cache)
    (hole,) = by_hand(cache, model).glob("model-00001-of-*.safetensors")
    hole.unlink()
    said = opened(silent, cache)
    assert "refused" in said
    assert "not whole in the local cache" in said


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RevisionNotFound", "has no revision 'v7'"),
        (403, "GatedRepo", "is gated; accept its terms"),
        (401, "RepoNotFound", "the hub has no such model"),
        (404, "RepoNotFound", "the hub has no such model"),
        (418, "Teapot", "HTTP status 418"),
    ],
)
def test_what_the_hub_refuses_is_named(cache: Path, model: Path, status: int, code: str, says: str) -> None:
    with hub(MODEL, model) as served:
        served.refusal = (status, code)
        said = opened(served.url, cache, "v7")
    assert "refused acme/tiny: " in said
    assert says in said


def test_a_model_of_the_hub_is_held_to_the_same_rules(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    edit_config(model, auto_map={"AutoModel": "modeling.Own"})
    by_hand(cache, model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(CheckpointError, match="auto_map"):
        family_of(Checkpoint.open(MODEL), FAMILIES)
