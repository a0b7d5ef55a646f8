import numpy as np

from bench.texts import Writer


def test_the_same_seed_writes_the_same_texts() -> None:
    def write(seed: int) -> list[str]:
        writer = Writer(seed)
        return [writer.of_words(int(length)) for length in writer.lognormal(20, 67, 0.8, 3, 1500)]

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_lognormal_lengths_have_the_asked_median_and_spread() -> None:
    lengths = Writer(0).lognormal(48, median=67, sigma=0.8, low=3, high=1500)
    assert len(lengths) == 48
    assert abs(np.median(lengths) - 67) <= 2
    assert abs(np.log(lengths).std() - 0.8) < 0.05
    # A lognormal's mean is median * exp(sigma² / 2).
    assert abs(lengths.mean() / (67 * np.exp(0.32)) - 1) < 0.05


def test_lengths_are_cut_to_their_bounds_and_not_sorted() -> None:
    lengths = Writer(0).lognormal(100, median=100, sigma=1.0, low=50, high=150)
    assert lengths.min() == 50
    assert lengths.max() == 150
    assert (np.diff(lengths) < 0).any()


def test_uniform_lengths_reach_both_ends() -> None:
    lengths = Writer(0).uniform(25, 8, 32)
    assert sorted(lengths) == list(range(8, 33))


def test_of_words_counts_words() -> None:
    for length in (1, 7, 200):
        assert len(Writer(3).of_words(length).split()) == length


def test_of_tokens_never_exceeds_and_comes_within_a_word() -> None:
    def count(piece: str) -> int:  # three letters a token
        return -(-len(piece) // 3)

    writer = Writer(5)
    for length in (8, 32, 500):
        text = writer.of_tokens(length, count)
        pieces = text.replace(".", "\0.").replace(" ", "\0 ").split("\0")
        tokens = sum(count(piece) for piece in pieces)
        assert length - count(" encryption") < tokens <= length
