"""The README's lines for frameworks, against the real stack. They are large: `make http-frameworks` installs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.local.stack import Stack
from tests.support.pypi import environment, installed
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = (
    "openai==3.57.0",
    "langchain-openai==1.7.4",
    "langchain-cohere==0.6.0",
    "llama-index-embeddings-openai-like==0.4.0",
    "haystack-ai==3.4.1",
    "cohere-haystack==11.0.0",
    "litellm==1.110.2",
)
TEXT, QUERY = "delete a folder", "remove a directory"
DOCUMENTS = ["cp copies a file", "rmtree removes a directory tree", "print writes a line"]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif("HTTP_FRAMEWORKS" not in os.environ, reason="make http-frameworks runs it: it installs 300 MB"),
]

CHECKED = f"""
import json
from haystack import Document
from langchain_cohere import CohereEmbeddings
text, query, documents = {TEXT!r}, {QUERY!r}, {DOCUMENTS!r}
cohere = CohereEmbeddings(base_url=address, cohere_api_key="none", model="nano-embed")
ranked = ranker.run(query=query, documents=[Document(content=each) for each in documents])["documents"]
by_litellm = litellm.rerank(
    model="cohere/nano-rerank", api_base=address, api_key="none", query=query, documents=documents
).results
print(json.dumps({{
    "vectors": [
        langchain.embed_documents([text])[0],
        llama_index.get_text_embedding(text),
        haystack.run(text)["embedding"],
        found.data[0]["embedding"],
        cohere.embed_documents([text])[0],
    ],
    "orders": [
        [each["index"] for each in compressor.rerank(documents, query)],
        [documents.index(each.content) for each in ranked],
        [each["index"] for each in by_litellm],
    ],
}}))
"""


def said_by_frameworks(stack: Stack) -> dict[str, Any]:
    folder = installed("http-frameworks", *FRAMEWORKS)
    readme = (ROOT / "README.md").read_text("utf-8")
    [script] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "langchain" in block]
    command = [sys.executable, "-P", "-W", "ignore", "-c"]
    script = script.replace("localhost:8080", stack.addresses["gateway http"]) + CHECKED
    quiet = environment(folder, LITELLM_LOCAL_MODEL_COST_MAP="True", HAYSTACK_TELEMETRY_ENABLED="False")
    done = subprocess.run([*command, script], env=quiet, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


async def test_the_readme_is_true(stack: Stack) -> None:
    said = said_by_frameworks(stack)
    async with grpc.aio.insecure_channel(stack.addresses["gateway"]) as channel:
        embedded = await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest(texts=[TEXT]))
        request = rerank_pb2.RerankRequest(query=QUERY, documents=DOCUMENTS)
        reranked = await rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request)
    expected = embedded.results[0].embedding.data
    assert [np.array(vector, "<f4").tobytes() for vector in said["vectors"]] == [expected] * 5
    assert said["orders"] == [[result.index for result in reranked.results]] * 3
