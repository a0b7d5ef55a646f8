"""Retrieve, then rerank, in one call. Run it against a gateway: WINNOW_ADDRESS=localhost:50050 python example.py."""

import asyncio
import os

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

TEXTS = [
    "shutil.rmtree removes a whole directory tree",
    "os.remove deletes one file",
    "math.gcd is the greatest common divisor",
]


async def main() -> None:
    """Search three texts, embed them, and read an error."""
    # Without the option, gRPC goes through http_proxy, which leads to the internet and seldom to a gateway.
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(os.environ.get("WINNOW_ADDRESS", "localhost:50050"), options) as channel:
        retrieval = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        request = retrieval_pb2.SearchRequest(query="delete a directory tree", top_n=2)
        request.documents.documents.extend(retrieval_pb2.Document(text=text) for text in TEXTS)
        found = await retrieval.Search(request, timeout=10)
        for hit in found.hits:
            print(f"{hit.score:.4f}  #{hit.retrieval_rank}  {hit.text}")

        # Vectors travel as little-endian bytes: no copy, no parsing.
        embed = embed_pb2_grpc.EmbedServiceStub(channel)
        embedded = await embed.Embed(embed_pb2.EmbedRequest(texts=TEXTS, dimensions=64), timeout=10)
        for result in embedded.results:
            vector = np.frombuffer(result.embedding.data, dtype="<f4")
            print(f"{vector.size} dimensions, length {np.linalg.norm(vector):.4f}")

        # An error names the field and says what to do.
        try:
            await embed.Embed(embed_pb2.EmbedRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            status = rpc_status.from_call(error)
            for detail in status.details if status else ():
                bad_request = error_details_pb2.BadRequest()
                if detail.Unpack(bad_request):
                    print(f"{bad_request.field_violations[0].field}: {bad_request.field_violations[0].description}")


if __name__ == "__main__":
    asyncio.run(main())
