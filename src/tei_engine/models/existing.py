"""Answers of a ready-made graph: which of its outputs is what, and the heads it does not have itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tei_engine.errors import StartError
from tei_engine.graph.arrays import Array, FloatArray
from tei_engine.graph.heads import Dense
from tei_engine.graph.outputs import Output
from tei_engine.graph.session import Session
from tei_engine.graph.stored import Stored
from tei_engine.models import pooling
from tei_engine.models.batch import Batch
from tei_engine.models.configuration import Configuration
from tei_engine.models.dense import read_dense_modules
from tei_engine.models.feeding import Feeding, Portion
from tei_engine.models.kinds import Kind

_SENTENCES = "sentence_embedding"
_TOKENS = ("last_hidden_state", "token_embeddings")
_LOGITS = "logits"
_FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})
_PROBED = (2, 3)
"""Texts and tokens of the run that shows how many dimensions each output has, where the graph fixes neither."""


class Existing:
    """One ready-made graph as a model: what it answers with, how wide, and its runs."""

    def __init__(self, name: str, stored: Stored, session: Session, configuration: Configuration) -> None:
        """Look at the graph `name`, loaded into `session`.

        Raises StartError if its inputs or outputs are not those of such a model, or if its first run fails.
        """
        self.cosine = None
        """How near a graph quantised elsewhere is to its original is not known."""
        self._feeding = Feeding.of(
            session.input_ports,
            alone=stored.quantises_runs,
            pad_id=configuration.pad_id,
            pads_left=configuration.pads_left,
        )
        self.takes_types = self._feeding.takes_types
        self.longest = self._feeding.tokens
        """Tokens that an input may have; None = the graph does not say."""
        self._pooling = configuration.pooling
        self._dense: tuple[Dense, ...] = ()
        shapes = self._probe(session)
        self._sources = _sources(shapes, configuration)
        if not self._sources:
            wanted = _LOGITS if configuration.kind is not Kind.EMBEDDING else "token vectors"
            if configuration.kind is Kind.EMBEDDING and not configuration.is_pooling_given:
                wanted = f"{_SENTENCES} or {wanted}"
            listed = ", ".join(f'"{output}"' for output in session.outputs)
            raise StartError(f"Unknown output keys: [{listed}]", f"{name} has no {wanted}")
        self.outputs = tuple(self._sources)
        self.dimension = shapes[self._sources[self.outputs[0]]][-1]
        """Width of the first output."""
        if configuration.labels is not None and self.dimension != len(configuration.labels.names):
            raise StartError(
                f"{name} gives {self.dimension} logits, config.json names {len(configuration.labels.names)} labels"
            )
        if self._pools:
            self._dense = read_dense_modules(configuration.dense, hidden=self.dimension)
            self.dimension = self._dense[-1].weight.shape[0] if self._dense else self.dimension

    def run(self, session: Session, batch: Batch, wanted: Sequence[Output]) -> list[FloatArray]:
        """What is `wanted` of `batch`, in that order. Raises ValueError for a text that is too long."""
        names = list(dict.fromkeys(self._sources[output] for output in wanted))
        parts: dict[Output, list[FloatArray]] = {output: [] for output in wanted}
        for portion in self._feeding.portions(batch):
            values = dict(zip(names, session.run(portion.inputs, names), strict=True))
            for output in wanted:
                parts[output].append(self._answer(output, values[self._sources[output]], portion))
        return [_joined(parts[output], batch) for output in wanted]

    @property
    def _pools(self) -> bool:
        """Whether vectors of texts are made here from those of tokens."""
        return Output.POOLED in self._sources and self._sources[Output.POOLED] != _SENTENCES

    def _answer(self, output: Output, values: Array, portion: Portion) -> FloatArray:
        if values.ndim == 2:
            return values[: len(portion.lengths)].astype(np.float32, copy=False)
        by_token = portion.unpadded(values).astype(np.float32, copy=False)
        if output is Output.POOLED:
            return pooling.project(pooling.pool(by_token, portion.lengths, self._pooling), self._dense)
        if output is Output.SPARSE:
            return pooling.weigh_words(by_token, portion.lengths)
        return by_token

    def _probe(self, session: Session) -> dict[str, tuple[int, ...]]:
        """The shape of every output of floats; exporters do not always declare them."""
        names = [port.name for port in session.output_ports if port.type in _FLOATS]
        if not names:
            return {}
        ids = np.zeros(_PROBED, dtype=np.int64)
        if self.longest is not None:
            ids = ids[:, : self.longest]
        portion = next(self._feeding.portions(Batch(ids, np.ones_like(ids))))
        try:
            values = session.run(portion.inputs, names)
        except Exception as error:  # ONNX Runtime raises its own untyped family
            raise StartError("the model failed its first run", str(error)) from error
        rows, tokens = portion.inputs["input_ids"].shape
        shapes = {name: one.shape for name, one in zip(names, values, strict=True)}
        return {
            name: shape
            for name, shape in shapes.items()
            if (len(shape) == 2 and shape[0] == rows) or (len(shape) == 3 and shape[:2] == (rows, tokens))
        }


def _sources(shapes: Mapping[str, tuple[int, ...]], configuration: Configuration) -> dict[Output, str]:
    """Which output of the graph each answer is made of, the most important first; empty if it has none."""
    sizes = {name: len(shape) for name, shape in shapes.items()}
    if configuration.kind is not Kind.EMBEDDING:
        output, dimensions = (Output.SPARSE, 3) if configuration.kind is Kind.SPLADE else (Output.LOGITS, 2)
        return {output: _LOGITS} if sizes.get(_LOGITS) == dimensions else {}
    by_token = _first((*_TOKENS, *_only(name for name, size in sizes.items() if size == 3)), sizes, 3)
    if not configuration.is_pooling_given and sizes.get(_SENTENCES) == 2:
        return {Output.POOLED: _SENTENCES} | ({Output.TOKENS: by_token} if by_token else {})
    return {Output.POOLED: by_token, Output.TOKENS: by_token} if by_token else {}


def _first(names: Iterable[str], sizes: Mapping[str, int], size: int) -> str | None:
    return next((name for name in names if sizes.get(name) == size), None)


def _only(names: Iterable[str]) -> list[str]:
    """Its one element, or none."""
    found = list(names)
    return found if len(found) == 1 else []


def _joined(parts: Sequence[FloatArray], batch: Batch) -> FloatArray:
    """The answers of all portions below each other, those by token as wide as the batch."""
    if parts[0].ndim == 2:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(parts) == 1 and parts[0].shape[1] == batch.ids.shape[1]:
        return parts[0]
    tokens = np.zeros((*batch.ids.shape, parts[0].shape[2]), dtype=np.float32)
    row = 0
    for part in parts:
        tokens[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return tokens
