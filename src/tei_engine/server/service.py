"""What the engine can be asked, free of any wire format. Both listeners call this and nothing below it."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from tei_engine import errors
from tei_engine.batching.jobs import Ask, Job, Sparse
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.kinds import Kind
from tei_engine.models.scores import probabilities
from tei_engine.server import asking, splitting
from tei_engine.server.asking import Answer, Input, Manner, Options, Prediction, Rank, Texts, Timings
from tei_engine.server.metrics import Metrics
from tei_engine.server.settings import Settings
from tei_engine.tokenization.tokenizer import Piece, Token

if TYPE_CHECKING:  # these import onnx and onnxruntime, and the listener must answer before they are there
    from tei_engine.batching.pipeline import Pipeline
    from tei_engine.models.configuration import Configuration

Value = TypeVar("Value")
Made = TypeVar("Made", contravariant=True)


class PieceMaker(Protocol[Made]):
    """Turns one input into a piece. Raises RequestError."""

    def __call__(self, value: Made, prompt: str | None, /, *, truncate: bool, left: bool) -> Piece: ...


class Phase(enum.Enum):
    """Where the process is in its life."""

    LOADING = "model is loading"
    READY = "ready"
    DRAINING = "shutting down"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that exists once the model is there."""

    pipeline: Pipeline
    configuration: Configuration
    model_sha: str | None
    load_seconds: float


class Service:
    """The engine as its callers see it. Belongs to the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.phase = Phase.LOADING
        self.started = int(time.time())
        self._loaded: Loaded | None = None
        self._active = 0
        self._calm = asyncio.Event()
        self._calm.set()

    def prepare(self, loaded: Loaded) -> None:
        """Take the model; requests are still refused."""
        self._loaded = loaded

    async def rehearse(self) -> None:
        """Send one text the whole way, as a request would go. Raises StartError if it fails."""
        pipeline = self.loaded.pipeline
        piece = Piece(text="warm up", truncate=True)
        try:
            with self.metrics.paused():
                await pipeline.run(Ask((piece,), want=pipeline.model.outputs[0]))
        except errors.RequestError as error:
            raise errors.StartError("the model failed its first request", error.message) from error

    def become_ready(self) -> None:
        """From now on requests are answered."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def abort(self) -> None:
        """Answer everything in flight with "shutting down"."""
        if self._loaded is not None:
            self._loaded.pipeline.abort()

    def drain(self) -> None:
        """From now on health says no; requests already here are still answered."""
        self.phase = Phase.DRAINING

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being answered while the block runs."""
        self._active += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._calm.set()

    async def wait_calm(self) -> None:
        """Wait until no request is being answered."""
        await self._calm.wait()

    @property
    def active(self) -> int:
        """Requests being answered."""
        return self._active

    @property
    def loaded(self) -> Loaded:
        """The loaded model. Raises RequestError Unhealthy while there is none."""
        if self._loaded is None:
            raise errors.unhealthy(Phase.LOADING.value if self.phase is Phase.LOADING else Phase.DRAINING.value)
        return self._loaded

    @property
    def is_healthy(self) -> bool:
        """Whether the model is loaded and computes, and requests are welcome."""
        return self.phase is Phase.READY and self.loaded.pipeline.is_healthy

    def check_health(self) -> None:
        """Raise RequestError Unhealthy, saying why, unless `is_healthy`."""
        if not self.is_healthy:
            raise errors.unhealthy("unhealthy" if self.phase is Phase.READY else self.phase.value)

    def count_refused(self, label: str) -> None:
        """Count a request that was turned away before it became one of `embed`."""
        self.metrics.requests.add("single")
        self.metrics.failures.add(label)

    @property
    def kind(self) -> Kind:
        """What the loaded model answers with. Raises RequestError Unhealthy while there is none."""
        return self.loaded.configuration.kind

    async def embed(
        self,
        inputs: Sequence[Input],
        options: Options,
        manner: Manner,
        want: Output = Output.POOLED,
    ) -> Answer:
        """Vectors of `inputs`, their token vectors, or their sparse vectors.

        Raises RequestError; in a batch it carries the row of the first failing input.
        """
        with self._counted(manner) as began:
            loaded = self.loaded
            model = loaded.pipeline.model
            asking.check_kind(want, model.kind, model.outputs, normalize=options.normalize)
            asking.check_dimensions(options.dimensions, model.dimension)
            is_whole = want is Output.POOLED and model.kind is Kind.SPLADE
            ask = Ask(
                self._pieces(inputs, options, asking.piece_of, manner),
                want=Output.SPARSE if is_whole else want,
                normalize=options.normalize,
                dimensions=options.dimensions,
                deadline=manner.deadline,
            )
            answer = await self._compute(ask, manner, began, characters=sum(map(len, inputs)))
            if not is_whole:
                return answer
            return Answer(_dense(answer.sparse, ask.dimensions or model.dimension), (), (), answer.timings)

    async def predict(
        self, inputs: Sequence[Texts], options: Options, manner: Manner, *, raw: bool
    ) -> tuple[list[list[Prediction]], Timings]:
        """Per input the labels by falling score; `raw` = logits instead of probabilities. Raises as `embed`."""
        answer = await self._score(inputs, options, manner)
        labels = self.loaded.configuration.labels
        assert labels is not None
        rows = (answer.rows if raw else probabilities(answer.rows)).tolist()
        return [
            [Prediction(labels.names[place], row[place]) for place in asking.descending(row)] for row in rows
        ], answer.timings

    async def rerank(
        self, query: str, texts: Sequence[str], options: Options, manner: Manner, *, raw: bool
    ) -> tuple[list[Rank], Timings]:
        """The places of `texts` by falling score against `query`. Raises as `embed`; also if there are none."""
        answer = await self._score([(query, text) for text in texts], options, manner, is_ranking=True)
        scores = (answer.rows if raw else probabilities(answer.rows))[:, 0].tolist()
        return [Rank(place, scores[place]) for place in asking.descending(scores)], answer.timings

    async def similarity(
        self, source: str, sentences: Sequence[str], options: Options, manner: Manner
    ) -> tuple[FloatArray, Timings]:
        """The cosine of `source` with each of `sentences`, float32 [n]. Raises as `embed`."""
        if not sentences:
            with self._counted(manner):
                raise errors.empty("`inputs.sentences` cannot be empty")
        try:
            answer = await self.embed([source, *sentences], options, manner)
        except errors.RequestError as error:
            if error.row is not None:  # the array that the caller gave begins behind the source
                error.row = error.row - 1 if error.row else None
            raise
        wide = answer.rows.astype(np.float64)  # sums of squares of float32 lose digits that a cosine shows
        cosines: FloatArray = (wide[1:] @ wide[0]).astype(np.float32)
        return cosines, answer.timings

    async def tokenize(
        self, inputs: Sequence[str], *, batch: bool, add_special_tokens: bool, prompt_name: str | None
    ) -> list[list[Token]]:
        """The tokens of each input, never truncated. Raises RequestError; in a batch it carries the row."""
        loaded = self.loaded
        if not inputs:
            raise errors.empty("`inputs` cannot be empty")
        self.check_batch(len(inputs))
        prompt = self._prompt(prompt_name) or ""
        longest = loaded.configuration.max_input_length
        tokens = loaded.pipeline.tokenizer.tokens

        def one(text: str) -> list[Token]:
            return tokens(prompt + text, add_special_tokens=add_special_tokens, max_length=longest)

        return await _by_row(loaded.pipeline, inputs, one, empty=errors.EMPTY_INPUTS, batch=batch)

    async def decode(
        self, inputs: Sequence[Sequence[int]], *, batch: bool, skip_special_tokens: bool
    ) -> list[str]:
        """The text of each list of ids. Raises RequestError; in a batch it carries the row."""
        loaded = self.loaded
        self.check_batch(len(inputs))
        one = partial(
            loaded.pipeline.tokenizer.decode,
            skip_special_tokens=skip_special_tokens,
            max_length=loaded.configuration.max_input_length,
        )
        return await _by_row(loaded.pipeline, inputs, one, empty=errors.EMPTY_IDS, batch=batch)

    async def _score(
        self, inputs: Sequence[Texts], options: Options, manner: Manner, *, is_ranking: bool = False
    ) -> Answer:
        """Logits of texts and pairs."""
        with self._counted(manner) as began:
            loaded = self.loaded
            model = loaded.pipeline.model
            if is_ranking:
                if not inputs:
                    raise errors.empty("`texts` cannot be empty")
                asking.check_reranker(model.kind)
            asking.check_kind(Output.LOGITS, model.kind, model.outputs, normalize=False)
            pieces = self._pieces(inputs, options, asking.scored_piece, manner)
            ask = Ask(pieces, want=Output.LOGITS, deadline=manner.deadline)
            characters = sum(len(text) for texts in inputs for text in texts)
            return await self._compute(ask, manner, began, characters=characters)

    async def _compute(self, ask: Ask, manner: Manner, began: float, *, characters: int) -> Answer:
        """Run `ask` under permits, in parts if it is larger than a client batch may be."""
        pipeline, most = self.loaded.pipeline, self.settings.max_client_batch_size
        try:
            if len(ask.pieces) <= most:
                jobs = [await splitting.run(pipeline, ask, wait=manner.wait)]
            else:
                jobs = await splitting.run_in_parts(pipeline, ask, most, wait=manner.wait)
        except errors.RequestError as error:
            if not manner.batch:
                error.row = None
            raise
        timings = _timings(jobs, characters, time.perf_counter() - began)
        for job in jobs:
            job.entries.clear()  # they hold the job, and the job them and the texts: see `errors.let_go`
        self.metrics.saw_request(timings.total, timings.tokenization, timings.queue, timings.inference)
        return Answer(
            rows=jobs[0].rows if len(jobs) == 1 else np.concatenate([job.rows for job in jobs]),
            tokens=[job.tokens[row] for job in jobs for row in sorted(job.tokens)],
            sparse=[job.sparse[row] for job in jobs for row in sorted(job.sparse)],
            timings=timings,
        )

    def check_batch(self, size: int) -> None:
        """Raise RequestError Validation if a request may not have as many as `size` inputs."""
        most = splitting.LARGEST if self.settings.auto_split else self.settings.max_client_batch_size
        if size > most:
            raise errors.invalid(f"batch size {size} > maximum allowed batch size {most}", label="batch_size")

    def _pieces(
        self, inputs: Sequence[Value], options: Options, make: PieceMaker[Value], manner: Manner
    ) -> tuple[Piece, ...]:
        """Check the number of inputs and each of them."""
        self.check_batch(len(inputs))
        prompt = self._prompt(options.prompt_name)
        truncate = self.settings.auto_truncate if options.truncate is None else options.truncate
        pieces = []
        for row, value in enumerate(inputs):
            try:
                pieces.append(make(value, prompt, truncate=truncate, left=options.left))
            except errors.RequestError as error:
                raise (error.at_row(row) if manner.batch else error) from None
        return tuple(pieces)

    def _prompt(self, name: str | None) -> str | None:
        if name is None:
            if self.settings.default_prompt_name is None:
                return self.settings.default_prompt
            name = self.settings.default_prompt_name
        return asking.find_prompt(name, self.loaded.configuration.prompts)

    @contextmanager
    def _counted(self, manner: Manner) -> Iterator[float]:
        """Count one request: it succeeds or fails exactly once, whatever happens. Gives the time it began."""
        method = "batch" if manner.batch else "single"
        self.metrics.requests.add(method)
        try:
            yield time.perf_counter()
        except errors.RequestError as error:
            self.metrics.failures.add(error.label)
            raise
        except asyncio.CancelledError:
            self.metrics.failures.add("dropped")
            raise
        except Exception as error:
            self.metrics.failures.add("inference")
            raise errors.internal(error) from error
        else:
            self.metrics.successes.add(method)


Given = TypeVar("Given", str, Sequence[int])


async def _by_row(
    pipeline: Pipeline, inputs: Sequence[Given], one: Callable[[Given], Value], *, empty: str, batch: bool
) -> list[Value]:
    """`one` of each input on a tokenizer thread, one by one so that embedding has its turn in between."""
    answers = []
    for row, value in enumerate(inputs):
        try:
            if not value:
                raise errors.empty(empty)
            answers.append(await pipeline.call(partial(one, value)))
        except errors.RequestError as error:
            raise (error.at_row(row) if batch else error) from None
    return answers


def _dense(vectors: Sequence[Sparse], size: int) -> FloatArray:
    """Sparse vectors with their zeros, cut to `size`: [n, size]."""
    rows = np.zeros((len(vectors), size), dtype=np.float32)
    for row, (indices, values) in enumerate(vectors):
        kept = np.searchsorted(indices, size)
        rows[row, indices[:kept]] = values[:kept]
    return rows


def _timings(jobs: Sequence[Job], characters: int, total: float) -> Timings:
    entries = [entry for job in jobs for entry in job.entries]
    count = len(entries)
    return Timings(
        total=total,
        tokenization=sum(entry.tokenization for entry in entries) / count,
        queue=sum(entry.queue for entry in entries) / count,
        inference=sum(entry.inference for entry in entries) / count,
        characters=characters,
        tokens=sum(entry.length for entry in entries),
    )
