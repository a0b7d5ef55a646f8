"""Every process is restarted, one after another, while documents are upserted."""

from bench.reliability import figures
from bench.reliability.documents import Upserts, fill
from bench.reliability.fleet import EMBED_PACE, RERANK_PACE, Fleet
from bench.reliability.generator import Load
from bench.reliability.run import ALWAYS, Run, common

_RATE = 20.0
_DEADLINE_S = 10.0
_DOCUMENTS = 100
_LONGEST_S = 600.0  # of the load; it ends when the last process is back


def rolling(run: Run) -> None:
    """SIGTERM, wait, start again: three embed workers, two rerank workers, two gateways."""
    with run.start(embed=[EMBED_PACE] * 3, rerank=[RERANK_PACE] * 2, gateways=2, settings=run.settings) as fleet:
        fill(fleet, _DOCUMENTS)
        plan = run.plan(fleet, "embed", steps=[(_LONGEST_S, _RATE)], timeout=_DEADLINE_S, retries=True, until_told=True)
        with Upserts(fleet) as upserts, Load(plan) as load:
            load.begin()
            restart_all(fleet)
            load.end()
            result = load.result()
        lost, doubled = upserts.lost(), upserts.doubled(_DOCUMENTS)
    run.line(
        "rolling", f"SIGTERM and restart of {len(fleet.workers) + len(fleet.gateways)} processes in turn",
        {
            "failed": sum(not outcome.ok for outcome in result.outcomes),
            "longest_s": figures.percentile((one.latency for one in result.outcomes), 100),
            "upserts": upserts.acknowledged,
            "upserts_failed": upserts.failed,
            "upserts_error": upserts.error,
            "lost": lost,
            "doubled": doubled,
            **common(result),
        },
        {"failed": "== 0", "upserts_failed": "== 0", "lost": "== 0", "doubled": "== 0", **ALWAYS},
    )  # fmt: skip


def restart_all(fleet: Fleet) -> None:
    """In turn: the next one when the last serves again. Certificates, if there are any, are renewed after each."""
    for name in [*fleet.workers, *fleet.gateways]:
        fleet.restart(name)
        fleet.renew()
