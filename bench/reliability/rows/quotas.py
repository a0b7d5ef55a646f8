"""A caller that offers twice its quota."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.reliability import figures
from bench.reliability.fleet import EMBED_PACE
from bench.reliability.generator import run as run_plan
from bench.reliability.outcomes import Outcome
from bench.reliability.run import ALWAYS, Run, common, milliseconds
from bench.reliability.tokens import token, tokens_file

CALLER = "metered"
QUOTA = 0.5 * EMBED_PACE  # tokens per second: the worker is never what limits
_OFFERED = 2.0  # of the quota
_FIRST = 4  # calls that tell how many tokens one has
_BURST_S = 0.25  # so that the burst is used up soon
_USED_UP_S = 1.0  # from then on the quota is measured
_DEADLINE_S = 5.0
_EXACT = 0.05
_REFUSAL = ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")


def quotas(run: Run) -> None:
    """What the caller gets once its burst is used up, against its tokens per second."""
    seconds = run.seconds(6.0)
    with ExitStack() as stack:
        tokens, callers = stack.enter_context(tokens_file(CALLER)), stack.enter_context(callers_file())
        fleet = stack.enter_context(run.start(rerank=[], settings={**tokens, **callers, **run.settings}))
        few = run.plan(fleet, "embed", at_once=_FIRST, token=token(CALLER), seed=run.seed + 1)
        of_call = _tokens(run_plan(few).outcomes) / _FIRST
        rate = _OFFERED * QUOTA / of_call
        steps = [(_USED_UP_S + seconds, rate)]
        result = run_plan(run.plan(fleet, "embed", steps=steps, timeout=_DEADLINE_S, token=token(CALLER)))
    got = _tokens([one for one in result.outcomes if one.at >= _USED_UP_S]) / seconds
    last = max((one.at + one.latency for one in result.outcomes if one.ok), default=0.0)
    refusals = [outcome for outcome in result.outcomes if outcome.refused]
    over_quota = [outcome for outcome in refusals if (outcome.code, outcome.reason) == _REFUSAL]
    run.line(
        "quotas", f"{_OFFERED:g} x a quota of {QUOTA:g} tokens/s",
        {
            "tokens_per_second": got,
            "offered_tokens_per_second": rate * of_call,
            "off_by": abs(got / QUOTA - 1),
            "share_of_most": _tokens(result.outcomes) / (QUOTA * (_BURST_S + last)),
            "refusals": len(refusals),
            "quota_failure": figures.share(over_quota, lambda outcome: outcome.quota_failure),
            "retry_info": figures.share(over_quota, lambda outcome: outcome.retry_info),
            "refusals_p99_ms": milliseconds(figures.percentile((outcome.latency for outcome in over_quota), 99)),
            "failed_otherwise": sum(not outcome.ok for outcome in result.outcomes) - len(over_quota),
            **common(result),
        },
        {
            "off_by": f"<= {_EXACT}", "quota_failure": ">= 1", "retry_info": ">= 1", "failed_otherwise": "== 0",
            **ALWAYS,
        },
    )  # fmt: skip


def _tokens(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.tokens for outcome in outcomes)


@contextmanager
def callers_file() -> Iterator[dict[str, str]]:
    """The setting of a gateway at which the caller has a quota."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(
            f"[callers.{CALLER}]\ntokens_per_second = {QUOTA}\nburst_tokens = {round(_BURST_S * QUOTA)}\n"
        )  # fmt: skip
        file.flush()
        yield {"GATEWAY_CALLERS_FILE": file.name}
