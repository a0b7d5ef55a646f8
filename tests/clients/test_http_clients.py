"""The clients of OpenAI and Cohere, as PyPI has them, against the real stack. They are installed once, in .cache."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.local.stack import Stack
from services.api.vectors import encode
from services.runtime.errors import PoolSaturated
from tests.support.gateway import running
from tests.support.pypi import environment, installed
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ("openai==3.57.0", "cohere==7.3.1")
TEXTS = ["rmtree removes a directory tree", "cp copies a file", "", "é 漢字 🙂 " * 30]
QUERY = "delete a folder"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def clients() -> Path:
    """A folder with the clients."""
    return installed("http-clients", *CLIENTS)


def command(script: str) -> list[str]:
    return [sys.executable, "-P", "-W", "ignore", "-c", script]


def said(clients: Path, address: str, script: str) -> Any:
    """What the script prints, as JSON."""
    done = subprocess.run(
        command(script),
        env=environment(clients, ADDRESS=f"http://{address}"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


OPENAI = f"""
import json, os
from openai import BadRequestError, NotFoundError, OpenAI
client = OpenAI(base_url=os.environ["ADDRESS"] + "/v1", api_key="none", max_retries=0)
make = client.embeddings.create
texts = {TEXTS!r}
as_query = dict(dimensions=64, extra_body={{"input_type": "query"}})
def refused(kind, **fields):
    try:
        make(**fields)
    except kind as error:
        return [error.status_code, error.body["code"], error.body["message"]]
print(json.dumps({{
    "base64": [each.embedding for each in make(model="nano-embed", input=texts).data],
    "float": [each.embedding for each in make(model="nano-embed", input=texts, encoding_format="float").data],
    "query": make(model="nano-embed", input={QUERY!r}, **as_query).data[0].embedding,
    "models": [each.id for each in client.models.list()],
    "model": client.models.retrieve("nano-rerank").id,
    "unknown": refused(NotFoundError, model="text-embedding-3-small", input="x"),
    "tokens": refused(BadRequestError, model="nano-embed", input=[1, 2]),
    "width": refused(BadRequestError, model="nano-embed", input="x", dimensions=1),
}}))
"""

COHERE = f"""
import json, os
import cohere
client = cohere.ClientV2(api_key="none", base_url=os.environ["ADDRESS"])
first = cohere.Client(api_key="none", base_url=os.environ["ADDRESS"])
texts = {TEXTS!r}
def refused(kind, call, **fields):
    try:
        call(**fields)
    except kind as error:
        return [error.status_code, error.body["message"]]
kinds = ["float", "int8", "ubinary"]
found = client.embed(model="nano-embed", texts=texts, input_type="search_query", embedding_types=kinds).embeddings
asked = dict(model="nano-rerank", query={QUERY!r}, documents=texts)
print(json.dumps({{
    "float": found.float_, "int8": found.int8, "ubinary": found.ubinary,
    "rerank": [[each.index, each.relevance_score] for each in client.rerank(**asked, top_n=3).results],
    "first": [[each.index, each.document.text] for each in first.rerank(**asked, return_documents=True).results],
    "unknown": refused(cohere.NotFoundError, client.rerank, model="rerank-v3.5", query="x", documents=["y"]),
    "empty": refused(cohere.BadRequestError, client.rerank, model="nano-rerank", query=" ", documents=["y"]),
}}))
"""


def bits(rows: list[list[float]]) -> list[bytes]:
    return [np.array(row, "<f4").tobytes() for row in rows]


async def embedded(stack: Stack, texts: list[str], **fields: Any) -> list[bytes]:
    async with grpc.aio.insecure_channel(stack.addresses["gateway"]) as channel:
        request = embed_pb2.EmbedRequest(texts=texts, **fields)
        response = await embed_pb2_grpc.EmbedServiceStub(channel).Embed(request, timeout=60)
        return [result.embedding.data for result in response.results]


async def reranked(stack: Stack) -> list[tuple[int, float]]:
    async with grpc.aio.insecure_channel(stack.addresses["gateway"]) as channel:
        request = rerank_pb2.RerankRequest(query=QUERY, documents=TEXTS)
        response = await rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request, timeout=60)
        return [(result.index, result.score) for result in response.results]


async def test_openai_reads_what_grpc_returns(stack: Stack, clients: Path) -> None:
    expected = await embedded(stack, TEXTS)
    [query] = await embedded(stack, [QUERY], dimensions=64, input_type=embed_pb2.INPUT_TYPE_QUERY)
    found = said(clients, stack.addresses["gateway http"], OPENAI)
    assert bits(found["base64"]) == expected
    assert bits(found["float"]) == expected
    assert bits([found["query"]]) == [query]
    assert found["models"] == ["nano-embed", "nano-rerank"]
    assert found["model"] == "nano-rerank"
    assert found["unknown"][:2] == [404, "model_not_found"]
    assert '"nano-embed"' in found["unknown"][2]
    assert found["tokens"][0] == 400
    assert "check_embedding_ctx_length=False" in found["tokens"][2]
    assert found["width"][0] == 400
    assert "dimensions" in found["width"][2]


async def test_cohere_reads_what_grpc_returns(stack: Stack, clients: Path) -> None:
    expected = await embedded(stack, TEXTS, input_type=embed_pb2.INPUT_TYPE_QUERY)
    order = await reranked(stack)
    found = said(clients, stack.addresses["gateway http"], COHERE)
    assert bits(found["float"]) == expected
    rows = np.stack([np.frombuffer(data, "<f4") for data in expected])
    assert [np.array(row, np.int8).tobytes() for row in found["int8"]] == [
        each.data for each in encode(rows, embed_pb2.ENCODING_INT8)
    ]
    assert [bytes(row) for row in found["ubinary"]] == [each.data for each in encode(rows, embed_pb2.ENCODING_BINARY)]
    assert [tuple(pair) for pair in found["rerank"]] == order[:3]
    assert found["first"] == [[index, TEXTS[index]] for index, _ in order]
    assert found["unknown"][0] == 404
    assert '"nano-rerank"' in found["unknown"][1]
    assert found["empty"] == [400, "query: is empty"]


def test_the_readme_is_true(stack: Stack, clients: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme[readme.index("## Use the client you have") : readme.index("## The real models")]
    scripts = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    address = stack.addresses["gateway http"]
    for script in scripts[:2]:  # the others need frameworks: test_http_frameworks
        said(clients, address, script.replace("localhost:8080", address))


async def test_a_retry_waits_as_long_as_it_is_told(clients: Path) -> None:
    script = """
import os, time
from openai import OpenAI
client = OpenAI(base_url=os.environ["ADDRESS"] + "/v1", api_key="none", max_retries=1)
began = time.monotonic()
client.embeddings.create(model="stand-in", input="x")
print(time.monotonic() - began)
"""
    async with running(http_listen="127.0.0.1:0") as gateway:
        gateway.embed_worker.problem = PoolSaturated(2.0)
        asking = await asyncio.create_subprocess_exec(
            *command(script), env=environment(clients, ADDRESS=f"http://{gateway.served.http}"), stdout=subprocess.PIPE
        )
        await until(lambda: gateway.embed_worker.requests)
        gateway.embed_worker.problem = None
        output, _ = await asking.communicate()
        assert float(output) >= 2  # by itself the client would wait half a second
