"""Generates queries that a user might type for a corpus row: questions, keywords, synonyms, a remembered sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from training.rows import Row

_STOP_WORDS = (
    "a an and are as at be by for from given has have if in into is it its of on or that the this to using via "
    "when which with used not can will you your"
)
_STOP = frozenset(_STOP_WORDS.split())
_VERB_WORDS = (
    "add allow append apply assign build calculate call change check clear close combine compare compile compute "
    "configure connect construct convert copy count create decode define delete determine disable display download "
    "draw emit enable encode ensure estimate evaluate execute extract fetch fill filter find fit flatten flush format "
    "generate get give handle initialize insert install invoke iterate join list load lock log look make manage map "
    "match merge modify move normalize open parse perform pick plot predict prepare print process provide put query "
    "raise read receive record register remove rename render replace reset resize resolve return reverse rotate round "
    "run sample save scan search select send serialize set show shut sleep solve sort split start stop store stream "
    "strip sum test tokenize transform truncate turn unlink update upload validate wait walk wrap write yield"
)
_VERBS = frozenset(_VERB_WORDS.split())
_SOFTER = {
    "return": ("get", "find", "obtain"),
    "compute": ("calculate", "work out"),
    "construct": ("make", "build"),
    "yield": ("go through", "iterate over"),
    "remove": ("delete", "get rid of"),
    "create": ("make",),
}
_DO = (
    "how do I {}", "how do I {}?", "how to {}", "How can I {}?", "how can I {} in python", "what is the way to {}",
    "function to {}", "I want to {}", "how would I {}", "what lets me {}", "which function can {}?",
)  # fmt: skip
_THING = (
    "what is {}", "which package provides {}", "is there {}?", "I need {}", "looking for {}", "what can I use for {}",
    "something like {}", "software for {}", "recommend {}", "where do I find {}", "tell me about {}",
)  # fmt: skip


def _imperative(text: str) -> str | None:
    """`Returns the size.` → `return the size`; None if it does not start with a known verb."""
    first, _, rest = text.partition(" ")
    verb = first.lower()
    for stem in (verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y"):
        if stem in _VERBS and rest:
            return f"{stem} {rest}"
    return None


class QueryWriter:
    """Generates one query for a row at a time. All randomness comes from the given generator."""

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        self._synonyms = synonyms

    def question(self, text: str, rng: random.Random) -> str:
        """The one-line description as a question or a wish."""
        text = re.sub(r"[`*]|:\w+:", "", text).strip()
        phrase = _imperative(text)
        if phrase:
            verb, _, rest = phrase.partition(" ")
            if verb in _SOFTER and rng.random() < 0.6:
                verb = rng.choice(_SOFTER[verb])
            return rng.choice(_DO).format(f"{verb} {rest}")
        if len(text) > 1 and text[1:2].islower():
            text = text[0].lower() + text[1:]
        return rng.choice(_THING).format(text)

    def keywords(self, text: str, rng: random.Random) -> str:
        """Content words only, with some of them left out, sometimes in another order."""
        words = [w for w in re.findall(r"[\w.+#-]+", text) if w.lower() not in _STOP]
        kept = [w for w in words if rng.random() < 0.8] or words
        if rng.random() < 0.2:
            rng.shuffle(kept)
        return " ".join(kept[:12]) or text

    def reword(self, text: str, rng: random.Random, share: float) -> str:
        """Replaces a share of the words by WordNet synonyms."""

        def swap(match: re.Match[str]) -> str:
            options = self._synonyms.get(match.group().lower())
            return rng.choice(options) if options and rng.random() < share else match.group()

        return re.sub(r"[A-Za-z]{4,}", swap, text)

    def write(self, row: Row, rng: random.Random) -> str:
        """A query for `row`: its short line in a third of the cases, otherwise one of the forms above."""
        pick = rng.random()
        if pick < 0.35:
            text = row.query
        elif pick < 0.60:
            text = self.question(row.query, rng)
        elif pick < 0.75:
            text = self.keywords(row.query, rng)
        elif pick < 0.80:
            text = f"{re.sub(r'[._-]+', ' ', row.title.rsplit('.', 1)[-1])} {self.keywords(row.query, rng)}"
        else:
            sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n", row.doc) if 25 < len(s) < 220]
            text = rng.choice(sentences) if sentences else row.query
            if rng.random() < 0.6:
                text = self.keywords(text, rng)
        if rng.random() < 0.35:
            text = self.reword(text, rng, 0.3)
        return text.lower() if rng.random() < 0.3 else text
