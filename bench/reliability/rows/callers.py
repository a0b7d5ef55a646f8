"""Callers that mean ill, or want everything."""

import time
from collections.abc import Callable

import grpc

from bench.reliability import figures
from bench.reliability.generator import Load
from bench.reliability.generator import run as run_plan
from bench.reliability.run import ALWAYS, Run, common, milliseconds
from bench.reliability.tokens import token, tokens_file

_EMBED = "/winnow.embed.v1.EmbedService/Embed"
_EMPTY_TEXT = b"\x0a\x00"  # a field of EmbedRequest.texts, of no bytes
_FLOODS = 3
_SETTLED_S = 2.0
_GREEDY, _MODEST = 4.0, 0.2  # of the capacity
_DEADLINE_S = 5.0


def empty_texts(run: Run) -> None:
    """A stranger without a token sends messages that hold millions of empty texts; good calls go on beside it."""
    seconds = run.seconds(6.0)
    with tokens_file("good") as tokens, run.start(rerank=[], settings={**tokens, **run.settings}) as fleet:
        rate = 0.3 * run.capacity(fleet, "embed", token=token("good"))
        plan = run.plan(fleet, "embed", steps=[(seconds, rate)], timeout=_DEADLINE_S, token=token("good"))
        with Load(plan) as load:
            load.begin()
            load.at(seconds / 3)
            before = fleet.usage("gateway-0")
            fleet.forget_peak("gateway-0")
            begun = load.elapsed()
            answers = [_flood(fleet.addresses["gateway-0"], run.texts) for _ in range(_FLOODS)]
            ended = load.elapsed()
            peak = fleet.usage("gateway-0").peak_mb
            result = load.result()
        time.sleep(_SETTLED_S)
        after = fleet.usage("gateway-0")
    idle = figures.percentile(figures.before(result.outcomes, begun), 99)
    beside = figures.percentile((one.latency for one in result.outcomes if begun <= one.at < ended), 99)
    run.line(
        "empty-texts", f"{_FLOODS} messages of {run.texts} empty texts from a stranger",
        {
            "answers": answers,
            "cost_mb": peak - before.rss_mb,
            "kept_mb": after.rss_mb - before.rss_mb,
            "memory": after.rss_mb / before.rss_mb,
            "seconds": ended - begun,
            "success": figures.success(result.outcomes),
            "p99_before_ms": milliseconds(idle),
            "p99_beside_ms": milliseconds(beside),
            "p99_ratio": (beside or 0) / (idle or 1),
            **common(result),
        },
        {"cost_mb": "< 200", "memory": "<= 1.1", "success": ">= 1", "p99_ratio": "<= 3", **ALWAYS},
    )  # fmt: skip


def greedy(run: Run) -> None:
    """A caller that sends four times what the system can take, beside one that sends a fifth of it."""
    seconds = run.seconds(6.0)
    with tokens_file("greedy", "modest") as tokens, run.start(rerank=[], settings={**tokens, **run.settings}) as fleet:
        capacity = run.capacity(fleet, "embed", token=token("modest"))
        modest = [(seconds, _MODEST * capacity)]
        alone = run_plan(run.plan(fleet, "embed", steps=modest, timeout=_DEADLINE_S, token=token("modest")))
        asked_for = run.plan(
            fleet, "embed", steps=[(seconds, _GREEDY * capacity)], timeout=_DEADLINE_S, token=token("greedy"),
            seed=run.seed + 1,
        )  # fmt: skip
        beside_it = run.plan(
            fleet, "embed", steps=modest, timeout=_DEADLINE_S, token=token("modest"), seed=run.seed + 2
        )  # fmt: skip
        with Load(asked_for) as much, Load(beside_it) as little:
            much.begin()
            little.begin()
            of_greedy, beside = much.result(), little.result()
    p95_alone, p95 = (
        figures.percentile((one.latency for one in result.outcomes if one.ok), 95) for result in (alone, beside)
    )
    run.line(
        "greedy", f"{_MODEST:g} x beside {_GREEDY:g} x of the capacity",
        {
            "p95_alone_ms": milliseconds(p95_alone),
            "p95_beside_ms": milliseconds(p95),
            "p95_ratio": (p95 or 0) / (p95_alone or 1),
            "success": figures.success(beside.outcomes),
            "goodput_of_greedy": figures.goodput(of_greedy.outcomes, 0, seconds, _DEADLINE_S) / capacity,
            "codes_of_greedy": figures.codes(of_greedy.outcomes),
            **common(beside),
        },
        {"p95_ratio": "<= 1.5", "success": ">= 1", **ALWAYS},
    )  # fmt: skip


def _flood(address: str, texts: int) -> str:
    """The code that the stranger is answered."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        method: Callable[..., bytes] = channel.unary_unary(_EMBED, None, None)
        try:
            method(_EMPTY_TEXT * texts, timeout=120)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
