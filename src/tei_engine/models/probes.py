"""Texts that a reduced graph is compared on: questions and what answers them, in several languages and lengths."""

from __future__ import annotations

from itertools import pairwise

from tei_engine.errors import RequestError
from tei_engine.models.configuration import Configuration
from tei_engine.models.kinds import Kind
from tei_engine.tokenization.tokenizer import Encoded, Piece, Tokenizer

_ANSWERED = (
    (
        "why do leaves turn yellow in autumn",
        "As days grow shorter, trees stop making chlorophyll. Once the green fades, the yellow pigments "
        "that were in the leaf all summer become visible.",
    ),
    (
        "How do I undo the last commit without losing my changes?",
        "Run git reset --soft HEAD~1. The commit disappears from the branch, while every change it "
        "contained stays staged in the index.",
    ),
    (
        "What is the boiling point of water at high altitude?",
        "Air pressure falls with height, so water boils earlier: at 3,000 metres already near 90 °C, "
        "which is why pasta needs more minutes in the mountains.",
    ),
    (
        "symptoms of iron deficiency",
        "Tiredness, pale skin, brittle nails and shortness of breath on stairs are frequent signs that "
        "the body lacks iron; a blood test for ferritin confirms it.",
    ),
    (
        "Who pays when a parcel is damaged in transit?",
        "The seller bears the risk until a consumer holds the goods, and must therefore repair, replace "
        "or refund what the carrier has broken.",
    ),
    (
        "best way to store fresh basil",
        "Cut the stems, stand them in a glass of water at room temperature and cover the leaves loosely "
        "with a bag. In the fridge they turn black within a day.",
    ),
    (
        "Wie lange ist ein Reisepass gültig?",
        "Ein Reisepass gilt zehn Jahre, bei Personen unter 24 Jahren nur sechs. Verlängern kann man ihn "
        "nicht, man beantragt einen neuen.",
    ),
    (
        "Welche Pflanzen wachsen im Schatten?",
        "Farne, Funkien und Elfenblumen kommen mit wenig Licht zurecht, solange der Boden feucht und "
        "humusreich ist.",
    ),
    (
        "Pourquoi le ciel est-il bleu ?",
        "Les molécules de l'air diffusent davantage la lumière bleue que la rouge ; elle nous parvient "
        "donc de toutes les directions.",
    ),
    (
        "Comment résilier un abonnement internet ?",
        "Envoyez une lettre recommandée au fournisseur ; la résiliation prend effet dix jours après sa réception.",
    ),
    (
        "¿Cuándo se plantan los tomates?",
        "Los tomates se trasplantan en primavera, cuando ya no hay riesgo de heladas y la tierra supera "
        "los quince grados.",
    ),
    (
        "Come si prepara il caffè con la moka?",
        "Si riempie la caldaia d'acqua fino alla valvola, si mette il caffè macinato nel filtro senza "
        "pressarlo e si lascia salire a fuoco basso.",
    ),
    (
        "Qual é a capital da Austrália?",
        "A capital da Austrália é Camberra, escolhida em 1908 como compromisso entre Sydney e Melbourne.",
    ),
    (
        "Как работает тепловой насос?",
        "Тепловой насос забирает тепло у воздуха или грунта и с помощью компрессора передаёт его в "
        "систему отопления.",
    ),
    (
        "东京到京都坐新干线要多久?",
        "乘坐最快的新干线列车,从东京到京都大约需要两小时十五分钟。",
    ),
    (
        "富士山の高さはどれくらいですか。",
        "富士山は標高3776メートルで、日本で最も高い山です。",
    ),
    (
        "ما هي عاصمة المغرب؟",
        "عاصمة المغرب هي الرباط، أما أكبر مدنها فهي الدار البيضاء.",
    ),
    (
        "भारत का राष्ट्रीय पशु कौन सा है?",
        "बाघ भारत का राष्ट्रीय पशु है और इसे 1973 में चुना गया था।",
    ),
)
_ODD = (
    "hello",
    "refund",
    "42",
    "ok 👍🏽",
    "ERROR 2024-03-01T12:00:07Z worker[17]: connection reset by peer (errno 104), retry 3/5",
    "def mean(values):\n    return sum(values) / len(values) if values else 0.0",
    "SELECT name, COUNT(*) FROM orders WHERE total > 99.90 GROUP BY name ORDER BY 2 DESC;",
    "https://example.org/docs/search?q=vector+database&page=2#results",
    "Invoice no. 2023/0117: 3 × widget à 12,50 € = 37,50 € incl. VAT",
    "AAAA BBBB CCCC, dddd; eeee... (ffff) [gggg] {hhhh} <iiii> *jjjj* ~kkkk~ #llll",
    "the the the the the the the the the the the the the the the the the the the the",
    "She didn't say he stole the money; she said he borrowed it, which is not the same thing at all.",
    "Terrible service, we waited an hour and the soup was cold. Never again!",
    "Absolutely loved it – warm, funny and beautifully shot from the first minute to the last.",
)
_LENGTHS = (96, 128, 192, 256, 384, 512, 1024)
LONGEST = 2048
"""No probe has more tokens: one of 8192 would take gigabytes, and what int8 does to a row depends on no length."""


def encode_probes(tokenizer: Tokenizer, configuration: Configuration) -> list[Encoded]:
    """The probes as this model reads them, at most `max_input_length` tokens each; pairs for a reranker."""
    longest = longest_probe(configuration)
    vocabulary = configuration.vocab_size
    probes: list[Encoded] = []
    lengths = [*(length for length in _LENGTHS if length < longest), longest]
    for pieces, length in [(_short(configuration.kind), longest), *_long(configuration.kind, lengths)]:
        encoded = tokenizer.encode_typed(pieces, max_length=length, vocab_size=vocabulary)
        probes += [probe for probe in encoded if not isinstance(probe, RequestError) and probe.ids]
    return probes


def longest_probe(configuration: Configuration) -> int:
    """Tokens of the longest probe."""
    return min(configuration.max_input_length, LONGEST)


def _short(kind: Kind) -> list[Piece]:
    if kind is not Kind.RERANKER:
        texts = [text for pair in _ANSWERED for text in pair]
        return [_piece(text) for text in (*texts, *_ODD)]
    right = [_piece(*pair) for pair in _ANSWERED]
    wrong = [_piece(ask[0], other[1]) for ask, other in pairwise(_ANSWERED)]
    return right + wrong + [_piece(*pair) for pair in pairwise(_ODD)]


def _long(kind: Kind, lengths: list[int]) -> list[tuple[list[Piece], int]]:
    """One text per length, each beginning elsewhere; it has more tokens than that and is cut."""
    answers = [answer for _, answer in _ANSWERED]
    found = []
    for number, length in enumerate(lengths):
        joined = " ".join(answers[number:] + answers[:number])
        text = " ".join([joined] * (1 + 4 * length // len(joined)))
        pair = (_ANSWERED[number][0], text) if kind is Kind.RERANKER else (text,)
        found.append(([_piece(*pair)], length))
    return found


def _piece(text: str, pair: str | None = None) -> Piece:
    return Piece(text=text, pair=pair, truncate=True)
