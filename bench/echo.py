"""`python -m bench.echo FILE`: a bare grpc.aio server that responds to every call with the bytes of a file.

This is the minimum work of a gRPC server in Python, and so the reference for a server that responds from its cache.
"""

import asyncio
import sys
from pathlib import Path
from typing import TypeAlias

import grpc

METHOD = "/bench.Echo/Echo"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def handle(request: bytes, context: object) -> bytes:
            return answer

        self._handler: Handler = grpc.unary_unary_rpc_method_handler(handle)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """The only method."""
        return self._handler if handler_call_details.method == METHOD else None


async def _serve(answer: bytes) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([_Echo(answer)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]).read_bytes()))
