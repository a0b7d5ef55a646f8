"""What is held out stays out."""

from training.rows import Row
from training.splits import NearDuplicates, hold_out, training_rows

SENTENCE = "a small tool that shows how much space every folder on the disk takes and sorts them by size"
WORDS = SENTENCE.split()


def row(number: int, doc: str, group: str = "", query: str = "") -> Row:
    return Row("debian", group or f"source{number}", f"package{number}", query or f"short line number {number}", doc)


def test_groups_queries_and_near_duplicates_leave_training() -> None:
    held = row(0, " ".join(WORDS))
    rows = [
        held,
        row(1, "something else altogether, about music and nothing but music", group=held.group),
        row(2, "an unrelated text about mail servers and their many settings", query=held.query.upper()),
        row(3, " ".join([*WORDS[:-2], "their", "age"])),
        row(4, " ".join([*WORDS, *(f"more{i}" for i in range(40))])),
        row(5, "a parser for wiki markup that needs no other library at all"),
    ]
    assert training_rows(rows, [held]) == [rows[5]]
    assert training_rows(rows, [held], others=[rows[5].doc]) == []


def test_short_texts_compare_whole() -> None:
    seen = NearDuplicates(["Mail reader", " ".join(WORDS)])
    assert "mail reader!" in seen
    assert "mail writer" not in seen


def test_one_package_a_source_and_the_same_ones_every_time() -> None:
    rows = [row(i, f"text {i} " * 10, group=f"source{i // 3}") for i in range(300)]
    rows.append(row(999, "transitional dummy package " * 3))
    chosen = hold_out(rows, 40)
    assert len({r.group for r in chosen}) == len(chosen) == 40
    assert chosen == hold_out(list(reversed(rows)), 40)
    assert chosen == hold_out(rows, 80)[:40]
    assert all(r.title != "package999" for r in chosen)
