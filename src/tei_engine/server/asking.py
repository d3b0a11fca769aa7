"""What a request may ask and what it gets, free of any wire format; and which kind of model answers what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tei_engine import errors
from tei_engine.batching.jobs import Sparse
from tei_engine.errors import RequestError
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.kinds import Kind
from tei_engine.tokenization.tokenizer import Piece

Input = str | tuple[int, ...]
"""One input: a text, or token ids used as given."""

Texts = tuple[str, ...]
"""One input of a classifier: a text, or two that are read together."""


@dataclass(frozen=True, slots=True)
class Options:
    """How inputs are to be treated. `truncate` None = the server's --auto-truncate."""

    truncate: bool | None = None
    left: bool = False
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Manner:
    """How a request is carried out. `batch`: its inputs came as an array, so that errors name the row.

    `wait` = wait for permits instead of failing when they are taken; `deadline` is a time of `time.monotonic`.
    """

    batch: bool = False
    wait: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """What the `x-*` headers and gRPC metadata say. Durations in seconds, means over the request's inputs."""

    total: float
    tokenization: float
    queue: float
    inference: float
    characters: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was computed: `rows` [n, size], one per input; or per input its token vectors, or its sparse vector."""

    rows: FloatArray
    tokens: Sequence[FloatArray]
    sparse: Sequence[Sparse]
    timings: Timings


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label of an input and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Rank:
    """One text's place in the request and its score against the query."""

    index: int
    score: float


def check_kind(want: Output, kind: Kind, outputs: Sequence[Output], *, normalize: bool) -> None:
    """Raise RequestError, in the router's words, unless a model of this kind has what is wanted."""
    if want is Output.SPARSE and kind is not Kind.SPLADE:
        raise _refused("Model is not an embedding model with SPLADE pooling")
    if want is Output.LOGITS and kind not in (Kind.CLASSIFIER, Kind.RERANKER):
        raise _refused("Model is not a classifier model")
    if want in (Output.POOLED, Output.TOKENS) and kind in (Kind.CLASSIFIER, Kind.RERANKER):
        raise _refused("Model is not an embedding model")
    if want is Output.TOKENS and Output.TOKENS not in outputs:
        which = "SPLADE models" if kind is Kind.SPLADE else "this ONNX model"
        raise _refused(f"`embed_all` is not available for {which}")
    if want is Output.POOLED and kind is Kind.SPLADE and normalize:
        raise _refused("`normalize` is not available for SPLADE models")


def check_reranker(kind: Kind) -> None:
    """Raise RequestError unless the model ranks."""
    if kind is not Kind.RERANKER:
        raise _refused("model is not a re-ranker model")


def check_dimensions(dimensions: int | None, most: int) -> None:
    """Raise RequestError unless vectors of size `most` can be cut to `dimensions`; None = they are not cut."""
    if dimensions is None:
        return
    if dimensions <= 0:
        raise errors.invalid_input("`dimensions` should be positive")
    if dimensions > most:
        raise errors.invalid_input("`dimensions` should be smaller than the maximum embedding dimension.")


def find_prompt(name: str, prompts: Mapping[str, str]) -> str:
    """The text of the model's prompt `name`. Raises RequestError Validation in TEI's words."""
    if name in prompts:
        return prompts[name]
    start = f"`default-prompt-name` is set to `{name}` but"
    if not prompts:
        raise errors.invalid_input(f"{start} no prompts were found in the Sentence Transformers configuration")
    known = ", ".join(f'"{known}"' for known in prompts)
    raise errors.invalid_input(
        f"{start} it was not found in the Sentence Transformers prompts. Available prompts: [{known}]"
    )


def piece_of(value: Input, prompt: str | None, *, truncate: bool, left: bool) -> Piece:
    """One input, its prompt in front. Raises RequestError Empty."""
    if not value:
        raise errors.empty(errors.EMPTY_INPUTS)
    if isinstance(value, str):
        text = value if prompt is None else prompt + value
        return Piece(text=text, truncate=truncate, left=left)
    return Piece(ids=value, prompt=prompt, truncate=truncate, left=left)


def scored_piece(texts: Texts, prompt: str | None, *, truncate: bool, left: bool) -> Piece:
    """One input of a classifier. Raises RequestError if it is empty, or a pair that a prompt would go before."""
    if len(texts) == 1:
        return piece_of(texts[0], prompt, truncate=truncate, left=left)
    if prompt is not None:
        raise errors.invalid_input("`prompt_name` cannot be set with dual inputs")
    if not any(texts):
        raise errors.empty(errors.EMPTY_INPUTS)
    return Piece(text=texts[0], pair=texts[1], truncate=truncate, left=left)


def descending(scores: Sequence[float]) -> list[int]:
    """Places of `scores`, highest first; of equal ones the later first, which is the router's order."""
    return sorted(range(len(scores)), key=lambda place: (scores[place], place), reverse=True)


def _refused(message: str) -> RequestError:
    return errors.backend(message, label="model_type")
