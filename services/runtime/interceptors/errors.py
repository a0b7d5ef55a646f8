"""Outermost interceptor: converts every exception of a handler to a status that tells the caller what to do."""

from __future__ import annotations

import asyncio

import grpc

from services.runtime.interceptors.interceptor import Context, Interceptor
from services.runtime.rpc_status import abort, is_stray, to_problem


class ErrorsInterceptor(Interceptor):
    """Problem → status; any other exception → INTERNAL with an incident id; a stray CancelledError likewise."""

    async def failed(self, context: Context, error: BaseException) -> None:
        """Aborts the call with the status of the handler's exception."""
        ended = isinstance(error, grpc.aio.AbortError)
        cancelled = isinstance(error, asyncio.CancelledError) and not is_stray(error)
        if not ended and not cancelled:
            problem = to_problem(error)
            del error
            try:
                await abort(context, problem)
            except grpc.aio.AbortError as aborted:
                # grpc keeps it in the state of the call, to which its traceback refers, as do requests of any size.
                aborted.__context__ = None
                del problem
                raise aborted.with_traceback(None)  # noqa: B904
