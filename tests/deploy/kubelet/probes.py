"""Probes as the kubelet runs them: from outside the pod, each on a connection of its own, with their timings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import Object


async def ask(probe: Object, host: str, port: int) -> bool:
    """One attempt, within timeoutSeconds."""
    try:
        async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
            return await (_grpc(probe["grpc"], host, port) if "grpc" in probe else _connects(host, port))
    except (TimeoutError, OSError, grpc.aio.AioRpcError):
        return False


async def _grpc(probe: Object, host: str, port: int) -> bool:
    async with grpc.aio.insecure_channel(f"{host}:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = health_pb2.HealthCheckRequest(service=probe.get("service", ""))
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _connects(host: str, port: int) -> bool:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return True


async def until_started(probe: Object, host: str, port: int) -> bool:
    """Runs a startup probe until it succeeds; False when failureThreshold attempts have failed."""
    for _ in range(probe.get("failureThreshold", 3)):
        if await ask(probe, host, port):
            return True
        await asyncio.sleep(probe.get("periodSeconds", 10))
    return False


async def follow(probe: Object, host: str, port: int, told: Callable[[bool], None], state: bool) -> None:
    """Runs a probe for ever; tells each change of `state` that its thresholds make."""
    streak = 0
    while True:
        result = await ask(probe, host, port)
        streak = 0 if result == state else streak + 1
        needed = probe.get("successThreshold", 1) if result else probe.get("failureThreshold", 3)
        if streak >= needed:
            state, streak = result, 0
            told(state)
        await asyncio.sleep(probe.get("periodSeconds", 10))
