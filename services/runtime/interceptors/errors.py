"""Outermost: whatever comes out of a handler leaves as a status that says what the caller can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.runtime.interceptors.around import Around, Context
from services.runtime.telling import abort, caught, is_stray


class ErrorsInterceptor(Around):
    """Problem → status; any other exception → INTERNAL with an incident id; a stray CancelledError likewise."""

    @asynccontextmanager
    async def call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Aborts the call with what the handler's exception means."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError as error:
            if not is_stray(error):
                raise
            await abort(context, caught(error))
        except Exception as error:
            await abort(context, caught(error))
