"""A stream bears with an outage once, however many parts it has."""

import asyncio

import pytest

from services.api.retry import Outage, retry_while_unavailable
from services.runtime.errors import UpstreamUnavailable


class Upstream:
    """Away until it is told otherwise; counts."""

    def __init__(self) -> None:
        self.away = True
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.away:
            raise UpstreamUnavailable("index", retry_after_s=0.01)
        return "reply"


async def test_a_part_after_the_outage_does_not_bear_with_it_again() -> None:
    upstream, outage = Upstream(), Outage(0.5)
    with pytest.raises(UpstreamUnavailable):
        await retry_while_unavailable(upstream, outage)
    assert upstream.calls > 1
    for _ in range(100):
        before = upstream.calls
        with pytest.raises(UpstreamUnavailable):
            await retry_while_unavailable(upstream, outage)
        assert upstream.calls == before + 1


async def test_parts_side_by_side_end_together() -> None:
    upstream, outage = Upstream(), Outage(0.5)
    first = asyncio.create_task(retry_while_unavailable(upstream, outage))
    await asyncio.wait({first}, timeout=0.2)
    late = asyncio.create_task(retry_while_unavailable(upstream, outage))
    ended = await asyncio.gather(first, late, return_exceptions=True)
    assert [type(error) for error in ended] == [UpstreamUnavailable] * 2
    assert outage.since is not None
    assert asyncio.get_running_loop().time() < outage.since + 5


async def test_an_upstream_that_is_back_is_borne_with_anew() -> None:
    upstream, outage = Upstream(), Outage(0.3)
    with pytest.raises(UpstreamUnavailable):
        await retry_while_unavailable(upstream, outage)
    upstream.away = False
    assert await retry_while_unavailable(upstream, outage) == "reply"
    upstream.away = True
    before = upstream.calls
    with pytest.raises(UpstreamUnavailable):
        await retry_while_unavailable(upstream, outage)
    assert upstream.calls > before + 1
