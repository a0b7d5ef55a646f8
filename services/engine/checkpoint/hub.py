"""A model of the Hugging Face hub: the local cache first, then the network."""

import logging
import re
from pathlib import Path

from services.engine.checkpoint.weight_files import missing_weights
from services.engine.errors import CheckpointError

# What is read, and the files that tell a model which is used otherwise than ours.
FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "*/config.json",  # of sentence-transformers modules, such as 1_Pooling
    "adapter_config.json",
    "*quant*_config.json",
    "winnow.json",
]
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger("winnow.engine")


def is_hub_id(model: str) -> bool:
    """Whether `model` reads like Qwen/Qwen3-Embedding-0.6B."""
    return _ID.fullmatch(model) is not None


def snapshot(model: str, revision: str | None) -> Path:
    """The folder of a snapshot, named by its commit. Blocking.

    A cache that holds all files is used without asking the hub, so a start depends on no network. Raises
    CheckpointError.
    """
    from huggingface_hub import snapshot_download  # slow to import, and a folder does not need it
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except ValueError:
        raise CheckpointError(f"{model}: no such folder, and not a valid hub id") from None
    except OSError as error:
        raise CheckpointError(f"{model}: the local cache cannot be read ({error.strerror})") from None
    else:
        if _whole(folder):
            if revision is None or not _COMMIT.fullmatch(revision):
                log.info(
                    "%s: commit %s from the local cache; the hub is not asked for a newer one: `hf download %s` does",
                    *(model, folder.name, model if revision is None else f"{model} --revision {revision}"),
                )
            return folder
    return _downloaded(model, revision)


def _downloaded(model: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    log.info("%s: not whole in the local cache; downloading it from the hub", model)
    try:
        # snapshot_download asks the same, but without a time limit: a hub that never answers would hold the start.
        HfApi().model_info(model, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=FILES))
    except RevisionNotFoundError:
        raise CheckpointError(f"{model}: the hub has no revision {revision!r} of it") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{model}: is gated; accept its terms on the hub and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{model}: no such folder, and the hub has no such model (or it is private: set HF_TOKEN)"
        ) from None
    except OfflineModeIsEnabled:
        raise CheckpointError(
            f"{model}: is not whole in the local cache, and HF_HUB_OFFLINE forbids to download it; unset it, or give a"
            " folder"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(
            f"{model}: the hub answers with HTTP status {status}; try again, or give a folder"
        ) from None
    except Exception as error:
        raise CheckpointError(
            f"{model}: is not whole in the local cache and cannot be downloaded: the hub does not answer"
            f" ({type(error).__name__}); check the network, HF_ENDPOINT and the disk, or give a folder"
        ) from error
    log.info("%s: downloaded commit %s", model, folder.name)
    return folder


def _whole(folder: Path) -> bool:
    """Whether the files are there without which nothing starts: an old cache keeps no list of what it should hold."""
    files = all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))
    return files and missing_weights(folder) is None
