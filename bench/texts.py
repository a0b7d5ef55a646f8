"""Generates texts of given lengths, the same on every machine.

Lengths are evenly spaced quantiles of their distribution, so that even a few dozen texts have its median and spread,
and runs do not differ by chance. The words are common English ones with Zipf-like frequencies; only the number of
tokens matters, not the meaning.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

_LIST = """
the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they you
were there one all we can her has more when will would who their been if no what so up into than them only other time
new some could these two may then do first any my now such like our over man me even most made after also did many
before must through back years where much your way well down should because each just those people how too little
state good very make world still own see men work long get here between both life being under never day same another
know while last might us great old year off come since against go came right used take three small found give place
during house without again around however home think say school once public part system number water every night set
government thing point course program question head form group order development process service research result
change local company business family nation record human history problem effort language method value level theory
surface material energy increase current pressure field temperature science analysis measure structure function animal
ocean mountain river weather forest village harbour bridge garden winter summer station railway library museum
painting orchestra literature philosophy economics chemistry biology astronomy geology engineering architecture
agriculture medicine hospital treatment symptom protein bacteria vaccine immune membrane molecule hydrogen nitrogen
electricity magnetic frequency telescope satellite atmosphere gravity quantum radiation algorithm database compiler
processor network protocol encryption certificate parameter interface
"""
WORDS = _LIST.split()
_FREQUENCIES = 1.0 / (np.arange(len(WORDS)) + 8.0)
_FREQUENCIES /= _FREQUENCIES.sum()


class Writer:
    """Generates texts. The same seed generates the same texts."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def lognormal(self, count: int, median: float, sigma: float, low: int, high: int) -> Lengths:
        """`count` lengths with the quantiles of a lognormal distribution, cut to [low, high], in random order."""
        quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        lengths = np.clip(np.rint(median * np.exp(sigma * np.array(quantiles))), low, high)
        return self._random.permutation(lengths).astype(np.int64)

    def uniform(self, count: int, low: int, high: int) -> Lengths:
        """`count` lengths distributed evenly over [low, high], in random order."""
        return self._random.permutation(np.rint(np.linspace(low, high, count))).astype(np.int64)

    def of_words(self, length: int) -> str:
        """A text of `length` words."""
        return "".join(self._pieces(length))

    def of_tokens(self, length: int, count: Callable[[str], int]) -> str:
        """A text of `length` tokens, or fewer by less than one word. `count` returns the tokens of a piece of text.

        Pieces can be counted separately: byte-level BPE never merges across the space before a word or a full stop.
        """
        pieces = self._pieces(length)
        ends = np.cumsum([count(piece) for piece in pieces])
        return "".join(pieces[: max(1, int(np.searchsorted(ends, length, side="right")))])

    def _pieces(self, words: int) -> list[str]:
        """Words with the space before them, and full stops: `["The", " river", …, "."]`."""
        chosen = self._random.choice(len(WORDS), size=words, p=_FREQUENCIES)
        pieces: list[str] = []
        left = 0
        for index in chosen:
            word = WORDS[int(index)]
            if left == 0:
                word, left = word.capitalize(), int(self._random.integers(7, 19))
            pieces.append(f" {word}" if pieces else word)
            left -= 1
            if left == 0:
                pieces.append(".")
        if pieces and pieces[-1] != ".":
            pieces.append(".")
        return pieces
