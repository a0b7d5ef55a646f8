"""Answers as tables, for people."""

from rich.console import Console
from rich.table import Table

from winnow.retrieval.v1 import retrieval_pb2 as pb


def print_search(
    console: Console, query: str, response: pb.SearchResponse, marked: frozenset[str] = frozenset()
) -> None:
    """Print the hits of a search, where its time went, and what fell short. Ids in `marked` are highlighted."""
    table = Table(title=query, title_justify="left", title_style="bold", header_style="dim")
    table.add_column("document")
    for column in ("first stage", "cosine", "rerank", "score"):
        table.add_column(column, justify="right")
    for hit in response.hits:
        table.add_row(
            hit.id,
            f"#{hit.retrieval_rank}",
            f"{hit.retrieval_score:.3f}",
            f"{hit.rerank_score:.3f}" if hit.HasField("rerank_score") else "–",
            f"{hit.score:.3f}",
            style="green" if hit.id in marked else None,
        )
    console.print(table)
    console.print(timing_line(response), style="dim", highlight=False, soft_wrap=True)
    for shortfall in response.degradations:
        console.print(f"degraded: {shortfall.reason}: {shortfall.message}", style="yellow")


def timing_line(response: pb.SearchResponse) -> str:
    """Return where the time of a search went, and what the caches saved, on one line."""
    times, embed, rerank = response.timings, response.embed_usage, response.rerank_usage
    return (
        f"{times.total_ms:.1f} ms = embed {times.embed_ms:.1f} + retrieve {times.retrieve_ms:.1f}"
        f" + rerank {times.rerank_ms:.1f}; from cache: {embed.cache_hits} of {embed.cache_hits + embed.cache_misses}"
        f" vectors, {rerank.cache_hits} of {rerank.cache_hits + rerank.cache_misses} scores"
    )
