"""Lays token sequences out as one flat row in which no token is padding and no shared prefix is repeated.

Sharing is discovered from the tokens themselves, so the system prompt of two rerank requests, the query of one, the
`Instruct:` head of search queries and plain duplicates are all the same case. The row is cut into segments that form
a shallow tree:

    rows       [ P | P·Q | d1 | d2 | d3 | e1 | e2 ]        P·Q: what follows P; d1…d3 follow P·Q; e1, e2 stand alone
    positions  0…    |P|…  |PQ|… …       0…   0…

Every position-wise operation runs once per row. Attention alone looks at a segment together with its ancestors: as
segments come depth first, a segment's keys are those of the path to it.

Prefixes can be shared only if a token's state does not depend on what follows it, and if the last token's is the one
that is wanted. Otherwise each segment is a distinct text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.engine.layers.pooling import Pooling
from services.engine.types import Ids

MIN_SHARED = 8  # a shorter common prefix is not worth a segment of its own
LEVELS = 2  # of shared prefixes: system prompt and instruction, then query


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as integers. T rows, S segments, N sequences, E distinct texts (E ≤ N: duplicates are one).

    W rows are wanted, those that are pooled: one of each text, or all.
    """

    ids: Ids  # [T]
    positions: Ids  # [T]
    cu_q: Ids  # [S + 1] first row of each segment, then T
    cu_k: Ids  # [S + 1] the same for the keys a segment sees: its ancestors' and its own
    kv_index: Ids | None  # [cu_k[-1]] rows of those keys; None when nothing is shared and it would be 0 … T-1
    max_q: int
    max_k: int
    wanted_rows: Ids  # [W] rows whose output is wanted, ascending
    cu_wanted: Ids  # [S + 1] like cu_q, counting only wanted rows
    starts: Ids  # [E + 1] where each text's wanted rows begin in wanted_rows, then W
    outputs: Ids  # [N] sequence → index of its text
    pooling: Pooling
    requested_tokens: int  # sum of the sequences' lengths

    @property
    def tokens(self) -> int:
        """T, the tokens computed."""
        return len(self.ids)

    @property
    def texts(self) -> int:
        """E, the distinct texts."""
        return len(self.starts) - 1

    @property
    def max_wanted(self) -> int:
        """The most wanted rows of a segment."""
        return self.max_q if self.pooling is Pooling.MEAN else 1


@dataclass(eq=False, slots=True)
class _Segment:
    tokens: Ids
    position: int  # of its first token
    start: int  # its first row
    parent: "_Segment | None"
    ends: list[int] = field(default_factory=list)  # sequences whose last token is this segment's last

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


def pack(sequences: Sequence[Ids], *, min_saving: float = 0.0, pooling: Pooling = Pooling.LAST) -> Packed:
    """Packs non-empty sequences. O(total tokens · log N).

    `min_saving`: share prefixes only if that spares at least this fraction of the tokens; sharing costs a gather. 1 for
    a model that is not causal. Without effect if `pooling` is not by the last token.
    """
    requested = sum(map(len, sequences))
    levels = LEVELS if min_saving < 1 and pooling is Pooling.LAST else 0
    segments = _Tree(sequences, levels).segments
    if levels and segments[-1].stop > (1 - min_saving) * requested:
        segments = _Tree(sequences, 0).segments
    return _lay_out(segments, len(sequences), requested, pooling)


class _Tree:
    """Builds the segments in row order, depth first, so that a segment's descendants are contiguous rows."""

    def __init__(self, sequences: Sequence[Ids], levels: int) -> None:
        # Big-endian bytes sort like the tokens do; equal keys are duplicates.
        owners: dict[bytes, list[int]] = {}
        for index, ids in enumerate(sequences):
            owners.setdefault(ids.astype(">u4").tobytes(), []).append(index)
        self._owners = [owners[key] for key in sorted(owners)]
        self._ids = [sequences[owner[0]] for owner in self._owners]
        self._lcp = [0] + [common_prefix(a, b) for a, b in zip(self._ids, self._ids[1:], strict=False)]
        self.segments: list[_Segment] = []
        self._rows = 0
        self._grow(0, len(self._ids), None, levels)

    def _grow(self, low: int, high: int, parent: _Segment | None, levels: int) -> None:
        """Adds the sorted sequences low … high-1, which all begin with what `parent` and its ancestors hold."""
        depth = parent.position + len(parent.tokens) if parent else 0
        start = low
        for stop in range(low + 1, high + 1):
            if stop < high and levels and self._lcp[stop] >= depth + MIN_SHARED:
                continue  # goes with the one before it
            ids, alone = self._ids[start], stop - start == 1
            if not alone:
                shared = min(self._lcp[start + 1 : stop])
                self._grow(start, stop, self._add(ids[depth:shared], depth, parent), levels - 1)
            elif parent and len(ids) == depth:
                parent.ends = self._owners[start]
            else:
                self._add(ids[depth:], depth, parent).ends = self._owners[start]
            start = stop

    def _add(self, tokens: Ids, position: int, parent: _Segment | None) -> _Segment:
        segment = _Segment(tokens, position, self._rows, parent)
        self.segments.append(segment)
        self._rows += len(tokens)
        return segment


def _lay_out(segments: list[_Segment], sequences: int, requested: int, pooling: Pooling) -> Packed:
    cu_q = _cumulative([len(s.tokens) for s in segments])
    ended = _cumulative([1 if s.ends else 0 for s in segments])
    shared = any(s.parent for s in segments)
    cu_k = _cumulative([s.position + len(s.tokens) for s in segments]) if shared else cu_q
    outputs = np.empty(sequences, np.int32)
    for segment, at in zip(segments, ended, strict=False):
        outputs[segment.ends] = at
    match pooling:
        case Pooling.LAST:
            wanted, cu_wanted, starts = cu_q[1:][np.diff(ended) == 1] - 1, ended, _range(0, int(ended[-1]) + 1)
        case Pooling.FIRST:
            wanted, cu_wanted, starts = cu_q[:-1], ended, ended
        case Pooling.MEAN:
            wanted, cu_wanted, starts = _range(0, int(cu_q[-1])), cu_q, cu_q
    return Packed(
        ids=np.concatenate([s.tokens for s in segments]),
        positions=np.concatenate([_range(s.position, len(s.tokens)) for s in segments]),
        cu_q=cu_q,
        cu_k=cu_k,
        kv_index=np.concatenate([rows for s in segments for rows in _key_rows(s)]) if shared else None,
        max_q=int(np.diff(cu_q).max()),
        max_k=int(np.diff(cu_k).max()),
        wanted_rows=wanted,
        cu_wanted=cu_wanted,
        starts=starts,
        outputs=outputs,
        pooling=pooling,
        requested_tokens=requested,
    )


def _key_rows(segment: _Segment) -> list[Ids]:
    inherited = _key_rows(segment.parent) if segment.parent else []
    return [*inherited, _range(segment.start, len(segment.tokens))]


def _range(start: int, length: int) -> Ids:
    return np.arange(start, start + length, dtype=np.int32)


def _cumulative(counts: list[int]) -> Ids:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def common_prefix(a: Ids, b: Ids) -> int:
    """How many leading tokens `a` and `b` share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n
