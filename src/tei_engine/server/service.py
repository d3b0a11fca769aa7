"""What the engine can be asked, free of any wire format. Both listeners call this and nothing below it."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tei_engine import errors
from tei_engine.batching.jobs import Ask, Job, Want
from tei_engine.graph.arrays import FloatArray
from tei_engine.server.metrics import Metrics
from tei_engine.server.settings import Settings
from tei_engine.tokenization.tokenizer import Piece, Token

if TYPE_CHECKING:  # these import onnx and onnxruntime, and the listener must answer before they are there
    from tei_engine.batching.pipeline import Pipeline
    from tei_engine.models.configuration import Configuration

_log = logging.getLogger(__name__)

Value = TypeVar("Value")

Input = str | tuple[int, ...]
"""One input: a text, or token ids used as given."""


class Phase(enum.Enum):
    """Where the process is in its life."""

    LOADING = "model is loading"
    READY = "ready"
    DRAINING = "shutting down"


@dataclass(frozen=True, slots=True)
class Options:
    """How inputs are to be treated. `truncate` None = the server's --auto-truncate."""

    truncate: bool | None = None
    left: bool = False
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None


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
    """Vectors [n, dimensions] for embeddings, or per input its token vectors; and what it cost."""

    vectors: FloatArray
    tokens: Sequence[FloatArray]
    timings: Timings


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
            await pipeline.run(Ask((piece,)))
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

    async def embed(
        self,
        inputs: Sequence[Input],
        options: Options,
        *,
        batch: bool,
        want: Want = Want.POOLED,
        wait: bool = False,
        deadline: float | None = None,
    ) -> Answer:
        """Vectors of `inputs`. `wait` = wait for permits instead of failing when they are taken.

        Raises RequestError; in a batch it carries the row of the first failing input.
        """
        began = time.perf_counter()
        with self._counted("batch" if batch else "single"):
            loaded = self.loaded
            self._check_batch(len(inputs))
            self._check_dimensions(options.dimensions, loaded.pipeline.model.dimension)
            ask = Ask(
                pieces=self._pieces(inputs, options, loaded, batch=batch),
                want=want,
                normalize=options.normalize,
                dimensions=options.dimensions,
                deadline=deadline,
                bulk=wait,
            )
            try:
                job = await self._run(loaded.pipeline, ask, wait=wait)
            except errors.RequestError as error:
                if not batch:
                    error.row = None
                raise
            timings = _timings(job, inputs, time.perf_counter() - began)
            self.metrics.saw_request(timings.total, timings.tokenization, timings.queue, timings.inference)
            return Answer(job.vectors, [rows for rows in job.tokens if rows is not None], timings)

    async def tokenize(
        self, inputs: Sequence[str], *, batch: bool, add_special_tokens: bool, prompt_name: str | None
    ) -> list[list[Token]]:
        """The tokens of each input, never truncated. Raises RequestError; in a batch it carries the row."""
        loaded = self.loaded
        if not inputs:
            raise errors.empty("`inputs` cannot be empty")
        self._check_batch(len(inputs))
        prompt = self._prompt(prompt_name, loaded) or ""
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
        self._check_batch(len(inputs))
        one = partial(loaded.pipeline.tokenizer.decode, skip_special_tokens=skip_special_tokens)
        return await _by_row(loaded.pipeline, inputs, one, empty=errors.EMPTY_IDS, batch=batch)

    async def _run(self, pipeline: Pipeline, ask: Ask, *, wait: bool) -> Job:
        count = len(ask.pieces)
        if wait:
            async with pipeline.permits.hold(count):
                return await pipeline.run(ask)
        with pipeline.permits.hold_nowait(count):
            return await pipeline.run(ask)

    def _check_batch(self, size: int) -> None:
        most = self.settings.max_client_batch_size
        if size > most:
            raise errors.invalid(f"batch size {size} > maximum allowed batch size {most}", label="batch_size")

    @staticmethod
    def _check_dimensions(dimensions: int | None, most: int) -> None:
        if dimensions is None:
            return
        if dimensions <= 0:
            raise errors.invalid_input("`dimensions` should be positive")
        if dimensions > most:
            raise errors.invalid_input("`dimensions` should be smaller than the maximum embedding dimension.")

    def _pieces(
        self, inputs: Sequence[Input], options: Options, loaded: Loaded, *, batch: bool
    ) -> tuple[Piece, ...]:
        prompt = self._prompt(options.prompt_name, loaded)
        truncate = self.settings.auto_truncate if options.truncate is None else options.truncate
        pieces = []
        for row, value in enumerate(inputs):
            if not value:
                error = errors.empty(errors.EMPTY_INPUTS)
                raise error.at_row(row) if batch else error
            if isinstance(value, str):
                text = value if prompt is None else prompt + value
                pieces.append(Piece(text=text, truncate=truncate, left=options.left))
            else:
                pieces.append(Piece(ids=value, prompt=prompt, truncate=truncate, left=options.left))
        return tuple(pieces)

    def _prompt(self, name: str | None, loaded: Loaded) -> str | None:
        if name is None:
            if self.settings.default_prompt_name is None:
                return self.settings.default_prompt
            name = self.settings.default_prompt_name
        return find_prompt(name, loaded.configuration)

    @contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        """Count one request: it succeeds or fails exactly once, whatever happens."""
        self.metrics.requests.add(method)
        try:
            yield
        except errors.RequestError as error:
            self.metrics.failures.add(error.label)
            raise
        except asyncio.CancelledError:
            self.metrics.failures.add("dropped")
            raise
        except Exception as error:
            self.metrics.failures.add("inference")
            raise internal_error(error) from error
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


def internal_error(error: Exception) -> errors.RequestError:
    """What the caller learns of a fault of ours: a number, under which the log has the traceback."""
    number = uuid.uuid4().hex[:12]
    _log.error("internal error %s", number, exc_info=error)
    return errors.RequestError(errors.ErrorKind.BACKEND, f"internal error {number}", label="inference")


def find_prompt(name: str, configuration: Configuration) -> str:
    """The text of the model's prompt `name`. Raises RequestError Validation in TEI's words."""
    if name in configuration.prompts:
        return configuration.prompts[name]
    start = f"`default-prompt-name` is set to `{name}` but"
    if not configuration.prompts:
        raise errors.invalid_input(f"{start} no prompts were found in the Sentence Transformers configuration")
    known = ", ".join(f'"{known}"' for known in configuration.prompts)
    raise errors.invalid_input(
        f"{start} it was not found in the Sentence Transformers prompts. Available prompts: [{known}]"
    )


def _timings(job: Job, inputs: Sequence[Input], total: float) -> Timings:
    count = len(job.entries)
    return Timings(
        total=total,
        tokenization=sum(entry.tokenization for entry in job.entries) / count,
        queue=sum(entry.queue for entry in job.entries) / count,
        inference=sum(entry.inference for entry in job.entries) / count,
        characters=sum(map(len, inputs)),
        tokens=sum(entry.length for entry in job.entries),
    )
