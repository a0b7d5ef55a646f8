"""infinity-emb over HTTP, as it is normally used: a separate server, in its own environment `.cache/infinity`."""

import base64
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.checkpoints import CACHE
from bench.folders import query_prompt
from bench.machine import ROOT
from bench.subjects import Computed, MissingError, Requests, Scores, SubjectError, Vectors
from deploy.local.process import Process, StartError

ENVIRONMENT = ROOT / ".cache" / "infinity"
_INSTALL_SECONDS = 1200
_START_SECONDS = 600.0
_CALL_SECONDS = 3600.0


def install(environment: Path = ENVIRONMENT) -> Path:
    """The command `infinity_emb`, installed by pip on first use, because its dependencies conflict with ours."""
    command = environment / "bin" / "infinity_emb"
    done = environment / ".installed"
    if done.is_file():
        return command
    # The same version of torch as ours, for a fair comparison (and pip's default would install 3 GB of CUDA).
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install",
         "infinity-emb[server,torch]", f"torch=={torch.__version__}"],
    ]  # fmt: skip
    for step in steps:
        try:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise MissingError(f"cannot be installed: {lines[-1]}") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"cannot be installed: {type(error).__name__}") from None
    done.touch()
    return command


class Infinity:
    """A server with the model under a name per batch size. `POST /embeddings`, all texts in one call; it sorts and
    makes batches itself. Raises MissingError if it cannot be installed or cannot serve this model."""

    def __init__(self, folder: Path, device: str, format: str | None, batch_sizes: Sequence[int]) -> None:
        self.format = format or _own_format(device)
        self.computed, self._prompt = Computed(), query_prompt(folder)
        command: list[str | Path] = [install(), "v2", "--engine", "torch", "--device", device]
        command += ["--dtype", format or "auto", "--no-bettertransformer"]
        # Its disk cache would answer every repeat; it does not compile by default either.
        command += ["--no-vector-disk-cache", "--no-compile", "--no-model-warmup", "--host", "127.0.0.1"]
        for size in batch_sizes:
            command += ["--model-id", folder, "--served-model-name", f"batch-{size}", "--batch-size", str(size)]
        self._port = _free_port()
        command += ["--port", str(self._port)]
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix="infinity-", suffix=".log", dir=CACHE, delete=False) as log:
            quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
            self._process = Process("infinity", command, quiet, Path(log.name))
        try:
            self._process.wait_for("Uvicorn running on", _START_SECONDS)
        except StartError as error:
            self._process.stop()
            reason = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            raise MissingError(f"cannot serve this model: {reason[:200]}") from None

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        head = self._prompt if queries else ""
        body = {
            "model": f"batch-{batch_size}",
            "input": [head + text for text in texts],
            "encoding_format": "base64",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_CALL_SECONDS)
        try:
            connection.request("POST", "/embeddings", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise SubjectError(f"infinity answered {answer.status}: {text[:200]!r}")
        rows = sorted(json.loads(text)["data"], key=lambda row: int(row["index"]))
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), np.float32) for row in rows])

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """It does not serve causal rerankers."""
        raise NotImplementedError

    def close(self) -> None:
        """End the server."""
        self._process.stop()


def _own_format(device: str) -> str:
    """What it takes for `auto`."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
