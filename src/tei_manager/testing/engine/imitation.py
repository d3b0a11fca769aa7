"""The model that the testing engine pretends to have loaded: TEI's checks, and the answers to what passes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tei_manager.testing.engine import answers
from tei_manager.testing.engine.command_line import Options
from tei_manager.testing.engine.faults import Fault, fault

T = TypeVar("T")
Input = str | list[int]  # a text, or token ids
_INVALID = "Input validation error: "
_BACKEND = "Backend error: "


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A value and what it cost: characters and tokens (after truncation) of the texts it was computed from."""

    value: T
    characters: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    characters: int
    tokens: int


class Imitation:
    """Every method checks like TEI, raising Fault, and answers by the rules of `answers`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        script = options.script
        splade = script.model_type == "embedding" and options.pooling == "splade"
        self.kind = "splade" if splade else script.model_type
        self._dimensions = script.dimensions

    def check_batch(self, size: int) -> None:
        """A client batch may hold so many inputs."""
        limit = self.options.max_client_batch_size
        if size > limit:
            raise fault(
                "Validation", f"batch size {size} > maximum allowed batch size {limit}", label="batch_size"
            )

    def embed(
        self,
        inputs: Input,
        *,
        truncate: bool,
        normalize: bool = True,
        dimensions: int | None = None,
        prompt_name: str | None = None,
    ) -> Answer[list[float]]:
        """The vector of one input."""
        self._must_embed()
        if self.kind == "splade" and normalize:
            raise fault("Backend", f"{_BACKEND}`normalize` is not available for SPLADE models", label="model_type")
        size = self._dimensions if dimensions is None else dimensions
        if size < 1:
            raise fault("Validation", f"{_INVALID}`dimensions` should be positive")
        if size > self._dimensions:
            raise fault(
                "Validation",
                f"{_INVALID}`dimensions` should be smaller than the maximum embedding dimension.",
            )
        text = self._read(inputs, truncate, prompt_name)
        rule = answers.vector if normalize else answers.raw_vector
        return Answer(rule(text.text, size), text.characters, text.tokens)

    def embed_all(
        self, inputs: Input, *, truncate: bool, prompt_name: str | None = None
    ) -> Answer[list[list[float]]]:
        """One vector per token, specials included: the raw vector of the token's own text."""
        self._must_embed()
        if self.kind == "splade":
            raise fault("Backend", f"{_BACKEND}`embed_all` is not available for SPLADE models", label="model_type")
        text = self._read(inputs, truncate, prompt_name)
        tokens = answers.tokenize(text.text)[: text.tokens]
        vectors = [answers.raw_vector(token.text, self._dimensions) for token in tokens]
        return Answer(vectors, text.characters, text.tokens)

    def embed_sparse(
        self, inputs: Input, *, truncate: bool, prompt_name: str | None = None
    ) -> Answer[list[tuple[int, float]]]:
        """The (index, value) pairs of one input."""
        self._must_embed()
        if self.kind != "splade":
            raise fault(
                "Backend", f"{_BACKEND}Model is not an embedding model with SPLADE pooling", label="model_type"
            )
        text = self._read(inputs, truncate, prompt_name)
        return Answer(answers.sparse_vector(text.text), text.characters, text.tokens)

    def predict(
        self, inputs: Sequence[str], *, truncate: bool, raw_scores: bool
    ) -> Answer[list[tuple[float, str]]]:
        """(score, label) of a text or a pair, best first."""
        if self.kind not in ("classifier", "reranker"):
            raise fault("Backend", f"{_BACKEND}Model is not a classifier model", label="model_type")
        if len(inputs) not in (1, 2):
            raise fault("Validation", f"`inputs` must have a single or two elements. Given: {len(inputs)}")
        text = self._read("\n".join(inputs) if any(inputs) else "", truncate, None)
        if self.kind == "reranker":
            logit = answers.rank_logit(inputs[0], inputs[-1] if len(inputs) == 2 else "")
            scores = [logit if raw_scores else answers.sigmoid(logit)]
        else:
            logits = answers.class_logits(*inputs)
            scores = logits if raw_scores else answers.softmax(logits)
        ranked = _descending(scores)
        return Answer([(scores[i], f"LABEL_{i}") for i in ranked], text.characters, text.tokens)

    def rerank(
        self, query: str, texts: Sequence[str], *, truncate: bool, raw_scores: bool, split: bool = False
    ) -> Answer[list[tuple[int, float]]]:
        """(index, score) of every text, best first; `split` lifts the limit of a client batch."""
        if self.kind != "reranker":
            raise fault("Backend", f"{_BACKEND}model is not a re-ranker model", label="model_type")
        if not texts:
            raise fault("Empty", "`texts` cannot be empty")
        if not split:
            self.check_batch(len(texts))
        read = [self._read(f"{query}\n{text}" if query or text else "", truncate, None) for text in texts]
        logits = [answers.rank_logit(query, text) for text in texts]
        scores = logits if raw_scores else [answers.sigmoid(logit) for logit in logits]
        pairs = [(i, scores[i]) for i in _descending(scores)]
        return Answer(pairs, sum(text.characters for text in read), sum(text.tokens for text in read))

    def tokenize(
        self, text: str, *, specials: bool, prompt_name: str | None = None
    ) -> Answer[list[answers.Token]]:
        """The tokens of one text; never truncates."""
        prompted = self._prompted(text, prompt_name)
        tokens = answers.tokenize(prompted, specials=specials)
        return Answer(tokens, len(prompted), len(tokens))

    def decode(self, ids: list[int], *, skip_specials: bool) -> Answer[str]:
        """The text behind the ids."""
        if not ids:
            raise fault("Empty", f"{_INVALID}`input_ids` cannot be empty")
        text = answers.decode(ids, skip_specials=skip_specials)
        return Answer(text, len(text), len(ids))

    def _must_embed(self) -> None:
        if self.kind not in ("embedding", "splade"):
            raise fault("Backend", f"{_BACKEND}Model is not an embedding model", label="model_type")

    def _prompted(self, text: str, prompt_name: str | None) -> str:
        """The text that is served: `--default-prompt` before it. No named prompts exist here."""
        if prompt_name is not None:
            raise fault(
                "Validation",
                f"{_INVALID}`default-prompt-name` is set to `{prompt_name}` but no prompts were found in the"
                " Sentence Transformers configuration",
            )
        if not text:
            raise fault("Empty", f"{_INVALID}`inputs` cannot be empty")
        text = (self.options.default_prompt or "") + text
        marker = self.options.script.error_inputs
        if marker and marker in text:
            raise fault("Validation", f"{_INVALID}scripted error: `inputs` contains {marker}")
        return text

    def _read(self, inputs: Input, truncate: bool, prompt_name: str | None) -> _Text:
        """Check one input and count its tokens. The answer follows from the whole text, truncated or not."""
        if isinstance(inputs, list):
            for number in inputs:
                if number >= answers.VOCABULARY:
                    raise fault("Validation", f"{_INVALID}token id {number} is out of range")
            inputs = answers.decode(inputs)
        text = self._prompted(inputs, prompt_name)
        limit = self.options.script.max_input_length
        tokens = len(answers.tokenize(text))
        if tokens > limit and not truncate:
            raise fault("Validation", f"{_INVALID}`inputs` must have less than {limit} tokens. Given: {tokens}")
        return _Text(text, len(text), min(tokens, limit))


def not_a_reranker(kind: str) -> Fault | None:
    """What TEI's gRPC says to Rerank on another model: not the words of its HTTP."""
    if kind == "reranker":
        return None
    words = "model is not a re-ranker model" if kind == "classifier" else "model is not a classifier model"
    return fault("Backend", words, label="model_type")


def _descending(scores: Sequence[float]) -> list[int]:
    """Positions by falling score; equal scores in descending order of position, as TEI has it."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
