"""The gRPC listener: `tei.v1` and `grpc.health.v1`. RPCs of other kinds of model answer UNIMPLEMENTED."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tei_engine import errors
from tei_engine.batching.jobs import Want
from tei_engine.errors import StartError
from tei_engine.server import describe, error_table
from tei_engine.server.service import Options, Phase, Service, Timings
from tei_engine.tokenization.tokenizer import Token
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

_log = logging.getLogger(__name__)

_PARALLEL = 1024
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it a busy port would be shared, not refused
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    # callers may ping every 10 s, with or without a call in flight
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 9_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
)

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Response = TypeVar("Response")


async def start(service: Service, address: str, parallel: int = _PARALLEL) -> GrpcListener:
    """Listen on `address`. Raises StartError if it cannot be bound."""
    server = grpc.aio.server(options=_OPTIONS)
    checks = health.aio.HealthServicer()
    for register, servicer in _servicers(service, parallel):
        register(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"could not bind {address}: Address already in use") from error
    await server.start()
    listener = GrpcListener(server, checks)
    await listener.show(ready=False)
    return listener


def _servicers(service: Service, parallel: int) -> list[tuple[Callable[[Any, grpc.aio.Server], None], Any]]:
    return [
        (tei_pb2_grpc.add_InfoServicer_to_server, _Info(service)),
        (tei_pb2_grpc.add_EmbedServicer_to_server, _Embed(service, parallel)),
        (tei_pb2_grpc.add_TokenizeServicer_to_server, _Tokenize(service, parallel)),
        (tei_pb2_grpc.add_PredictServicer_to_server, _Nothing()),
        (tei_pb2_grpc.add_RerankServicer_to_server, _Nothing()),
    ]


class GrpcListener:
    """The running server, and what its health service says."""

    def __init__(self, server: grpc.aio.Server, checks: health.aio.HealthServicer) -> None:
        self._server = server
        self._checks = checks

    async def show(self, *, ready: bool) -> None:
        """Say whether Embed is served; the process itself, Info and Tokenize are as long as it lives."""
        serving = health_pb2.HealthCheckResponse.SERVING
        idle = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", "tei.v1.Info", "tei.v1.Tokenize"):
            await self._checks.set(name, serving)
        await self._checks.set("tei.v1.Embed", serving if ready else idle)
        for name in ("tei.v1.Predict", "tei.v1.Rerank"):
            await self._checks.set(name, idle)

    async def drain(self, grace: float) -> None:
        """Refuse new calls and wait up to `grace` seconds for those in flight."""
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace)


class _Guard:
    """What every servicer shares: the key, the phase, errors → statuses."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _answer(self, context: Context, work: Callable[[], Awaitable[Response]]) -> Response:
        """Run `work` for a caller who may, and turn its RequestError into a status."""
        try:
            await self._admit(context)
            return await work()
        except errors.RequestError as error:
            await _abort(context, error)
            raise AssertionError("abort raises") from error

    async def _admit(self, context: Context) -> None:
        key = self._service.settings.api_key
        if key is not None:
            given = dict(context.invocation_metadata() or ()).get("authorization", b"")
            raw = given.encode() if isinstance(given, str) else bytes(given)
            if not hmac.compare_digest(raw, b"Bearer " + key.encode()):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")
        if self._service.phase is Phase.LOADING:
            raise errors.unhealthy(Phase.LOADING.value)


class _Info(_Guard, tei_pb2_grpc.InfoServicer):
    async def Info(self, request: tei_pb2.InfoRequest, context: Context) -> tei_pb2.InfoResponse:
        """What is served here."""

        async def work() -> tei_pb2.InfoResponse:
            info = describe.info(self._service)
            return tei_pb2.InfoResponse(
                version=info["version"],
                sha=info["sha"],
                docker_label=info["docker_label"],
                model_id=info["model_id"],
                model_sha=info["model_sha"],
                model_dtype=info["model_dtype"],
                model_type=tei_pb2.MODEL_TYPE_EMBEDDING,
                max_concurrent_requests=info["max_concurrent_requests"],
                max_input_length=info["max_input_length"],
                max_batch_tokens=info["max_batch_tokens"],
                max_batch_requests=info["max_batch_requests"],
                max_client_batch_size=info["max_client_batch_size"],
                tokenization_workers=info["tokenization_workers"],
            )

        return await self._answer(context, work)


class _Embed(_Guard, tei_pb2_grpc.EmbedServicer):
    def __init__(self, service: Service, parallel: int) -> None:
        super().__init__(service)
        self._parallel = parallel

    async def Embed(self, request: tei_pb2.EmbedRequest, context: Context) -> tei_pb2.EmbedResponse:
        """One vector; fails fast when there are no permits."""

        async def work() -> tei_pb2.EmbedResponse:
            response = await self._embed(request, _deadline(context), wait=False)
            await context.send_initial_metadata(_cost(response.metadata))
            return response

        return await self._answer(context, work)

    async def EmbedAll(self, request: tei_pb2.EmbedAllRequest, context: Context) -> tei_pb2.EmbedAllResponse:
        """The vectors of every token; fails fast when there are no permits."""

        async def work() -> tei_pb2.EmbedAllResponse:
            response = await self._embed_all(request, _deadline(context), wait=False)
            await context.send_initial_metadata(_cost(response.metadata))
            return response

        return await self._answer(context, work)

    async def EmbedStream(
        self, request_iterator: AsyncIterator[tei_pb2.EmbedRequest], context: Context
    ) -> AsyncIterator[tei_pb2.EmbedResponse]:
        """One vector per message, in order; waits for permits."""
        deadline = _deadline(context)

        async def one(request: tei_pb2.EmbedRequest) -> tei_pb2.EmbedResponse:
            return await self._embed(request, deadline, wait=True)

        async for response in self._stream(context, request_iterator, one):
            yield response

    async def EmbedAllStream(
        self, request_iterator: AsyncIterator[tei_pb2.EmbedAllRequest], context: Context
    ) -> AsyncIterator[tei_pb2.EmbedAllResponse]:
        """Token vectors per message, in order; waits for permits."""
        deadline = _deadline(context)

        async def one(request: tei_pb2.EmbedAllRequest) -> tei_pb2.EmbedAllResponse:
            return await self._embed_all(request, deadline, wait=True)

        async for response in self._stream(context, request_iterator, one):
            yield response

    async def EmbedSparse(
        self, request: tei_pb2.EmbedSparseRequest, context: Context
    ) -> tei_pb2.EmbedSparseResponse:
        """Refused: no splade models yet."""

        async def work() -> tei_pb2.EmbedSparseResponse:
            raise errors.backend("Model is not an embedding model with SPLADE pooling", label="model_type")

        return await self._answer(context, work)

    async def _embed(
        self, request: tei_pb2.EmbedRequest, deadline: float | None, *, wait: bool
    ) -> tei_pb2.EmbedResponse:
        options = Options(
            truncate=request.truncate,
            left=_is_left(request.truncation_direction),
            prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
            normalize=request.normalize if request.HasField("normalize") else True,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
        )
        answer = await self._service.embed([request.inputs], options, batch=False, wait=wait, deadline=deadline)
        return tei_pb2.EmbedResponse(embeddings=answer.vectors[0], metadata=_metadata(answer.timings))

    async def _embed_all(
        self, request: tei_pb2.EmbedAllRequest, deadline: float | None, *, wait: bool
    ) -> tei_pb2.EmbedAllResponse:
        options = Options(
            truncate=request.truncate,
            left=_is_left(request.truncation_direction),
            prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
        )
        answer = await self._service.embed(
            [request.inputs], options, batch=False, want=Want.TOKENS, wait=wait, deadline=deadline
        )
        rows = [tei_pb2.TokenEmbedding(embeddings=row) for row in answer.tokens[0]]
        return tei_pb2.EmbedAllResponse(token_embeddings=rows, metadata=_metadata(answer.timings))

    async def _stream(
        self,
        context: Context,
        requests: AsyncIterator[Message],
        one: Callable[[Message], Awaitable[Response]],
    ) -> AsyncIterator[Response]:
        """Answers in the order of requests, `parallel` in flight; the first failing one ends the stream."""
        try:
            await self._admit(context)
            async for response in in_order(requests, one, parallel=self._parallel):
                yield response
        except errors.RequestError as error:
            await _abort(context, error)


class _Tokenize(_Guard, tei_pb2_grpc.TokenizeServicer):
    def __init__(self, service: Service, parallel: int) -> None:
        super().__init__(service)
        self._parallel = parallel

    async def Tokenize(self, request: tei_pb2.EncodeRequest, context: Context) -> tei_pb2.EncodeResponse:
        """The tokens of one text, never truncated."""

        async def work() -> tei_pb2.EncodeResponse:
            name = request.prompt_name if request.HasField("prompt_name") else None
            special = request.add_special_tokens
            [tokens] = await self._service.tokenize([request.inputs], add_special_tokens=special, prompt_name=name)
            return tei_pb2.EncodeResponse(tokens=map(_simple_token, tokens))

        return await self._answer(context, work)

    async def Decode(self, request: tei_pb2.DecodeRequest, context: Context) -> tei_pb2.DecodeResponse:
        """The text of one list of ids."""

        async def work() -> tei_pb2.DecodeResponse:
            [text] = await self._service.decode(
                [list(request.ids)], skip_special_tokens=request.skip_special_tokens
            )
            return tei_pb2.DecodeResponse(text=text)

        return await self._answer(context, work)


class _Nothing(tei_pb2_grpc.PredictServicer, tei_pb2_grpc.RerankServicer):
    """Services of other kinds of model: every rpc answers UNIMPLEMENTED."""


async def in_order(
    requests: AsyncIterator[Message], one: Callable[[Message], Awaitable[Response]], *, parallel: int
) -> AsyncIterator[Response]:
    """`one` of each request, results in request order, at most `parallel` at a time.

    Requests are not read while that many are in flight, which is the caller's backpressure. An error, or leaving
    the iteration, cancels what is in flight.
    """
    pending: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(parallel)
    started: set[asyncio.Task[Response]] = set()

    async def compute(request: Message) -> Response:
        return await one(request)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.create_task(compute(request))
                started.add(task)
                task.add_done_callback(started.discard)
                pending.put_nowait(task)
        finally:
            pending.put_nowait(None)

    reader = asyncio.create_task(read(), name="stream-reader")
    try:
        while (task := await pending.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        rest = [reader, *started]
        for unfinished in rest:
            unfinished.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def _abort(context: Context, error: errors.RequestError) -> None:
    code = getattr(grpc.StatusCode, error_table.GRPC_CODE[error.kind])
    await context.abort(code, error.message)


def _deadline(context: Context) -> float | None:
    """The caller's deadline as a time of `time.monotonic`."""
    left: float | None = context.time_remaining()
    # without a deadline the library says some three hundred years, not None
    return time.monotonic() + left if left is not None and left < 10**9 else None


def _is_left(direction: int) -> bool:
    if direction not in (tei_pb2.TRUNCATION_DIRECTION_LEFT, tei_pb2.TRUNCATION_DIRECTION_RIGHT):
        raise errors.invalid_input(f"unknown truncation direction {direction}")
    return direction == tei_pb2.TRUNCATION_DIRECTION_LEFT


def _metadata(timings: Timings) -> tei_pb2.Metadata:
    return tei_pb2.Metadata(
        compute_chars=timings.characters,
        compute_tokens=timings.tokens,
        total_time_ns=int(timings.total * 1e9),
        tokenization_time_ns=int(timings.tokenization * 1e9),
        queue_time_ns=int(timings.queue * 1e9),
        inference_time_ns=int(timings.inference * 1e9),
    )


def _cost(metadata: tei_pb2.Metadata) -> tuple[tuple[str, str], ...]:
    """The `x-*` keys of a unary call's initial metadata; durations are whole milliseconds."""
    total = str(round(metadata.total_time_ns / 1e6))
    return (
        ("x-compute-type", "cpu+optimized"),
        ("x-compute-time", total),
        ("x-total-time", total),
        ("x-compute-characters", str(metadata.compute_chars)),
        ("x-compute-tokens", str(metadata.compute_tokens)),
        ("x-tokenization-time", str(round(metadata.tokenization_time_ns / 1e6))),
        ("x-queue-time", str(round(metadata.queue_time_ns / 1e6))),
        ("x-inference-time", str(round(metadata.inference_time_ns / 1e6))),
    )


def _simple_token(token: Token) -> tei_pb2.SimpleToken:
    return tei_pb2.SimpleToken(
        id=token.id, text=token.text, special=token.special, start=token.start, stop=token.stop
    )
