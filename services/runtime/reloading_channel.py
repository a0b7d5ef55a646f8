"""A channel that reloads its certificates; grpc's own are fixed for a channel's life (grpc/grpc issue 41779).

When a file changes, the next call goes out on a new channel; calls on the old one have time to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from services.runtime.reloading_files import ReloadingFiles

_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 300.0


class ReloadingChannel(grpc.aio.Channel):
    """Delegates each call to the present channel; `make` builds a new one when the certificate files change."""

    def __init__(
        self,
        files: ReloadingFiles,
        make: Callable[[tuple[bytes, ...]], grpc.aio.Channel],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._make, self._clock = files, make, clock
        self._contents = files.read()
        self._present = make(self._contents)
        self._looked = clock()
        self._closing: set[asyncio.Task[None]] = set()

    def present(self) -> grpc.aio.Channel:
        """The channel for new calls."""
        now = self._clock()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            contents = self._files.read()
            if contents is not self._contents:
                old, self._present, self._contents = self._present, self._make(contents), contents
                task = asyncio.create_task(old.close(_GRACE_SECONDS))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._present

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """As `grpc.aio.Channel` has it; so are the next three."""
        return self._each_call("unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """One request, many responses."""
        return self._each_call("unary_stream", arguments, named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        """Many requests, one response."""
        return self._each_call("stream_unary", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        """Many requests, many responses."""
        return self._each_call("stream_stream", arguments, named)

    def _each_call(self, kind: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Callable[..., Any]:
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*given: Any, **options: Any) -> Any:
            nonlocal made
            present = self.present()
            if made is None or made[0] is not present:
                made = present, getattr(present, kind)(*arguments, **named)
            return made[1](*given, **options)

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the present channel."""
        return self.present().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the present channel."""
        await self.present().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Of the present channel."""
        await self.present().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Closes the present channel and those that it replaced."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._present.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
