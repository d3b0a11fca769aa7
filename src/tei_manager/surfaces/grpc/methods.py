"""Every RPC that is passed through to an engine, in one table."""

from __future__ import annotations

from dataclasses import dataclass

MULTIPLEXER = "tei_multiplexer.v1.TeiMultiplexer"
NATIVE = tuple(f"tei.v1.{name}" for name in ("Info", "Embed", "Predict", "Rerank", "Tokenize"))


@dataclass(frozen=True, slots=True)
class Method:
    """`word` is what its inner request is called in messages; None: it has none."""

    name: str
    service: str  # of tei.v1
    label: str
    word: str | None
    is_stream: bool
    answers_once: bool  # many messages, one answer

    @property
    def path(self) -> str:
        """Of the engine, and of our own native service."""
        return f"/{self.service}/{self.name}"

    @property
    def multiplexer_path(self) -> str:
        return f"/{MULTIPLEXER}/{self.name}"


# name, service, label, word; a stream of the same name exists where True
_ROWS = (
    ("Info", "Info", "info", None, False),
    ("Embed", "Embed", "embed", "embed", True),
    ("EmbedSparse", "Embed", "embed_sparse", "embed_sparse", True),
    ("EmbedAll", "Embed", "embed_all", "embed_all", True),
    ("Predict", "Predict", "predict", "predict", True),
    ("PredictPair", "Predict", "predict_pair", "predict_pair", True),
    ("Rerank", "Rerank", "rerank", "rerank", True),
    ("Tokenize", "Tokenize", "tokenize", "tokenize", True),
    ("Decode", "Tokenize", "decode", "decode", True),
)

METHODS: tuple[Method, ...] = tuple(
    Method(
        name=name + suffix,
        service=f"tei.v1.{service}",
        label=label + suffix.replace("Stream", "_stream"),
        word=word,
        is_stream=bool(suffix),
        answers_once=not suffix or name == "Rerank",
    )
    for name, service, label, word, streams in _ROWS
    for suffix in (("", "Stream") if streams else ("",))
)
