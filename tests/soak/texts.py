"""The pool of texts that all questions are made of: few enough to know every answer, of all lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence

_LEXICON = (
    "anchor apple autumn bakery battery bicycle border bridge budget butter cactus camera candle canyon "
    "captain castle cement charter chimney circuit climate clinic cobalt comet committee compass concert "
    "copper cotton courier crystal current dairy debate delta desert diesel diploma dolphin drama eclipse "
    "editor elbow election embassy engine estate fabric factory falcon fever fiddle flood forest fossil galaxy "
    "garden gearbox geology glacier granite guitar hammer harbour harvest helmet herring highway hockey honey "
    "horizon hospital hunger income insect island ivory jacket journal jungle jury kernel kettle kitchen "
    "ladder lantern lawyer lemon library lizard locksmith machine magnet market meadow medicine mineral mirror "
    "molecule monsoon mortgage museum needle nitrogen notebook oasis obelisk ocean opera orbit orchard organ "
    "oxygen oyster painter panther paper parliament pension pepper piano pigeon pilot planet poetry police "
    "polymer prairie prison protein pyramid quarry rabbit radar railway recipe refugee rhythm river robot "
    "rocket sailor salmon satellite school scissors senate shadow shepherd silver soldier spider stadium "
    "station steel storm sugar summit surgeon tariff teacher temple tennis theatre thunder tiger timber "
    "tobacco tractor treaty tunnel turbine umbrella uranium vaccine valley velvet village vinegar violin "
    "volcano voyage walnut warehouse weather whale window winter wizard yeast and of the with under before "
    "against for from to in beside without over after is was has likes moves "
)
_WORDS = tuple(_LEXICON.split())

_SHARES = (0.85, 0.13, 0.02)
"""How often a short, a middling and a long text is drawn: most real inputs are short, the long ones cost most."""


class Pool:
    """Texts of three lengths: 3 to 12 words, to 60, to 400. The same for the same seed."""

    def __init__(self, seed: int, known: Sequence[str] = (), count: int = 200) -> None:
        """`known` texts come first; they are filled up to `count`, three in five short and one in ten long."""
        rng = random.Random(f"pool {seed}")
        self.texts = list(known)
        while len(self.texts) < count:
            low, high = rng.choices(((3, 12), (13, 60), (61, 400)), (6, 3, 1))[0]
            self.texts.append(" ".join(rng.choices(_WORDS, k=rng.randint(low, high))))
        self._groups: list[list[int]] = [[], [], []]
        for place, text in enumerate(self.texts):
            words = len(text.split())
            self._groups[0 if words <= 12 else 1 if words <= 60 else 2].append(place)

    def draw(self, rng: random.Random, count: int = 1) -> list[int]:
        """The places of `count` texts."""
        return [rng.choice(group) for group in rng.choices(self._groups, _SHARES, k=count)]

    def some(self, rng: random.Random, most: int = 32) -> list[int]:
        """The places of 1 to `most` texts, small batches more often than large ones."""
        return self.draw(rng, round(most ** (rng.random() ** 1.5)))

    def short(self, rng: random.Random, count: int) -> list[int]:
        """The places of `count` texts of up to 12 words."""
        return rng.choices(self._groups[0], k=count)

    def long(self, rng: random.Random) -> int:
        """The place of a text of more than 60 words."""
        return rng.choice(self._groups[2])
