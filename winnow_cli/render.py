"""Answers as tables, for people."""

import unicodedata

from rich.console import Console
from rich.table import Table
from rich.text import Text

from winnow.retrieval.v1 import retrieval_pb2 as pb

_SNIPPET = 72


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints others' text as it is: no markup, no emoji codes, no highlighting."""
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr)


def printable(text: str) -> str:
    """Return the text with control characters spelled out, so that it cannot steer the reader's terminal."""
    return "".join(
        f"\\x{ord(character):02x}" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
        for character in text
    )


def snippet(text: str, length: int = _SNIPPET) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 8 * length].split())
    return printable(line if len(line) <= length else line[: length - 1] + "…")


def print_search(
    console: Console, query: str, response: pb.SearchResponse, marked: frozenset[str] = frozenset()
) -> None:
    """Print the hits of a search, where its time went, and what fell short. Ids in `marked` get a tick and colour."""
    title = Text(snippet(query, 4 * _SNIPPET))
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    table.add_column("document", overflow="fold")
    table.add_column("text")
    for column in ("first stage", "cosine", "rerank", "score"):
        table.add_column(column, justify="right")
    for hit in response.hits:
        right = hit.id in marked
        table.add_row(
            Text(("✓ " if right else "") + printable(hit.id)),
            Text(snippet(hit.text)),
            f"#{hit.retrieval_rank}",
            f"{hit.retrieval_score:.3f}",
            f"{hit.rerank_score:.3f}" if hit.HasField("rerank_score") else "–",
            f"{hit.score:.3f}",
            style="green" if right else None,
        )
    console.print(table)
    console.print(timing_line(response), style="dim", highlight=False, soft_wrap=True)
    for shortfall in response.degradations:
        line = f"degraded: {shortfall.reason}: {printable(shortfall.message)}"
        console.print(line, style="yellow", markup=False, emoji=False, soft_wrap=True)


def timing_line(response: pb.SearchResponse) -> str:
    """Return where the time of a search went, and what the caches saved, on one line."""
    times, embed, rerank = response.timings, response.embed_usage, response.rerank_usage
    return (
        f"{times.total_ms:.1f} ms = embed {times.embed_ms:.1f} + retrieve {times.retrieve_ms:.1f}"
        f" + rerank {times.rerank_ms:.1f}; from cache: {embed.cache_hits} of {embed.cache_hits + embed.cache_misses}"
        f" vectors, {rerank.cache_hits} of {rerank.cache_hits + rerank.cache_misses} scores"
    )
