"""Builds the corpus: `python -m training.data [--work DIR] [--heldout DIR]`."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from training import debian, docstrings
from training.rows import Row, write_pairs, write_rows
from training.splits import HELD_OUT_PACKAGES, hold_out, training_rows

HERE = Path(__file__).parent
HELD_OUT = HERE / "heldout"
DEVELOPMENT = 1000  # more packages set aside, to choose the blend on


def build(work: Path, held_out_folder: Path = HELD_OUT) -> None:
    """Downloads everything, selects the held-out sets, and writes `work/train.jsonl` and the two test files."""
    debian.fetch(work)
    docstrings.fetch(work)
    packages = list(debian.descriptions(work))
    chosen = hold_out(packages, HELD_OUT_PACKAGES + DEVELOPMENT)
    held_out, development = chosen[:HELD_OUT_PACKAGES], chosen[HELD_OUT_PACKAGES:]
    write_pairs(held_out_folder / "debian.jsonl", held_out)
    unseen = list(docstrings.standard_library_rows())
    write_pairs(held_out_folder / "stdlib.jsonl", unseen)
    rows: list[Row] = [*packages, *debian.wordnet(work), *debian.foldoc(work), *debian.manuals(work)]
    rows += docstrings.wheels(work)
    texts = [text for _, text in docstrings.standard_library()] + [row.doc for row in unseen]
    kept = training_rows(rows, held_out, texts)
    aside = {row.group for row in development}
    kept = [replace(row, kind="dev") if row.kind == "debian" and row.group in aside else row for row in kept]
    write_pairs(work / "dev.jsonl", [replace(row, kind="dev") for row in development])
    write_rows(work / "train.jsonl", kept)
    print("read", dict(Counter(row.kind for row in rows)), flush=True)
    print("kept", dict(Counter(row.kind for row in kept)), flush=True)
    print(f"held out: {len(held_out)} packages, {len(unseen)} standard-library entries", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for downloads and caches")
    parser.add_argument("--heldout", type=Path, default=HELD_OUT, help="folder for the test sets")
    options = parser.parse_args()
    build(options.work.resolve(), options.heldout)


if __name__ == "__main__":
    main()
