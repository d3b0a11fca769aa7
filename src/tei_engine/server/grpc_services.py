"""The services of `tei.v1`. Those of other kinds of model answer as text-embeddings-router does with this kind."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import grpc

from tei_engine import errors
from tei_engine.batching.jobs import Want
from tei_engine.server import describe, error_table
from tei_engine.server.grpc_streams import in_order
from tei_engine.server.service import Options, Phase, Service, Timings, internal_error
from tei_engine.tokenization.tokenizer import Token
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

_log = logging.getLogger(__name__)

_LARGE_ANSWERS = 64  # token vectors: up to a megabyte each, all held while the caller does not read

_LONGEST_DETAILS = 1024  # details travel in trailers, which receivers bound to some kilobytes

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Response = TypeVar("Response")


def servicers(service: Service, parallel: int) -> list[tuple[Callable[[Any, grpc.aio.Server], None], Any]]:
    """Each service with the function that registers it. `parallel` bounds the messages of a stream in flight."""
    others = _OtherKinds(service, parallel)
    return [
        (tei_pb2_grpc.add_InfoServicer_to_server, _Info(service, parallel)),
        (tei_pb2_grpc.add_EmbedServicer_to_server, _Embed(service, parallel)),
        (tei_pb2_grpc.add_TokenizeServicer_to_server, _Tokenize(service, parallel)),
        (tei_pb2_grpc.add_PredictServicer_to_server, others),
        (tei_pb2_grpc.add_RerankServicer_to_server, others),
    ]


class _Guard:
    """What every servicer shares: the key, the phase, errors → statuses, a line in the log."""

    def __init__(self, service: Service, parallel: int) -> None:
        self._service = service
        self._parallel = parallel

    async def _answer(self, context: Context, name: str, work: Callable[[], Awaitable[Response]]) -> Response:
        """Run `work` for a caller who may, and turn its RequestError into a status."""
        began = time.perf_counter()
        with self._service.in_flight():
            try:
                await self._admit(context)
                return await work()
            except grpc.aio.AbortError:
                raise
            except errors.RequestError as error:
                await _abort(context, error)
            except Exception as error:  # a fault of ours costs one answer, not the process
                await _abort(context, internal_error(error))
            finally:
                _note(context, name, began)
        raise AssertionError("abort raises")

    async def _stream(
        self,
        context: Context,
        name: str,
        requests: AsyncIterator[Message],
        one: Callable[[Message], Awaitable[object]],
        most: int | None = None,
    ) -> None:
        """Answers in the order of requests, at most `most` in flight; the first failing one ends the stream."""
        began = time.perf_counter()
        parallel = min(self._parallel, most or self._parallel)

        async def counted(request: Message) -> object:
            with self._service.in_flight():
                return await one(request)

        try:
            await self._admit(context)
            async with aclosing(in_order(requests, counted, parallel=parallel)) as responses:
                async for response in responses:
                    with self._service.in_flight():
                        await context.write(response)
        except grpc.aio.AbortError:
            raise
        except errors.RequestError as error:
            await _abort(context, error)
        except Exception as error:
            await _abort(context, internal_error(error))
        finally:
            _note(context, name, began)

    async def _refuse(self, context: Context, name: str, error: errors.RequestError) -> None:
        """Abort a call that this kind of model does not take."""

        async def work() -> None:
            self._service.count_refused(error.label)
            raise error

        await self._answer(context, name, work)

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

        return await self._answer(context, "Info", work)


class _Embed(_Guard, tei_pb2_grpc.EmbedServicer):
    async def Embed(self, request: tei_pb2.EmbedRequest, context: Context) -> tei_pb2.EmbedResponse:
        """One vector; fails fast when there are no permits."""

        async def work() -> tei_pb2.EmbedResponse:
            response = await self._embed(request, _deadline(context), wait=False)
            await context.send_initial_metadata(_cost(response.metadata))
            return response

        return await self._answer(context, "Embed", work)

    async def EmbedAll(self, request: tei_pb2.EmbedAllRequest, context: Context) -> tei_pb2.EmbedAllResponse:
        """The vectors of every token; fails fast when there are no permits."""

        async def work() -> tei_pb2.EmbedAllResponse:
            response = await self._embed_all(request, _deadline(context), wait=False)
            await context.send_initial_metadata(_cost(response.metadata))
            return response

        return await self._answer(context, "EmbedAll", work)

    async def EmbedStream(self, request_iterator: AsyncIterator[tei_pb2.EmbedRequest], context: Context) -> None:
        """One vector per message, in order; waits for permits."""
        one = partial(self._embed, deadline=_deadline(context), wait=True)
        await self._stream(context, "EmbedStream", request_iterator, one)

    async def EmbedAllStream(
        self, request_iterator: AsyncIterator[tei_pb2.EmbedAllRequest], context: Context
    ) -> None:
        """Token vectors per message, in order; waits for permits."""
        one = partial(self._embed_all, deadline=_deadline(context), wait=True)
        await self._stream(context, "EmbedAllStream", request_iterator, one, most=_LARGE_ANSWERS)

    async def EmbedSparse(self, request: Any, context: Context) -> None:
        """Refused: no splade models yet."""
        message = "Model is not an embedding model with SPLADE pooling"
        await self._refuse(context, "EmbedSparse", errors.backend(message, label="model_type"))

    EmbedSparseStream = EmbedSparse

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


class _Tokenize(_Guard, tei_pb2_grpc.TokenizeServicer):
    async def Tokenize(self, request: tei_pb2.EncodeRequest, context: Context) -> tei_pb2.EncodeResponse:
        """The tokens of one text, never truncated."""
        return await self._answer(context, "Tokenize", lambda: self._tokenize(request))

    async def TokenizeStream(
        self, request_iterator: AsyncIterator[tei_pb2.EncodeRequest], context: Context
    ) -> None:
        """The tokens of one text per message, in order."""
        await self._stream(context, "TokenizeStream", request_iterator, self._tokenize)

    async def Decode(self, request: tei_pb2.DecodeRequest, context: Context) -> tei_pb2.DecodeResponse:
        """The text of one list of ids."""
        return await self._answer(context, "Decode", lambda: self._decode(request))

    async def DecodeStream(self, request_iterator: AsyncIterator[tei_pb2.DecodeRequest], context: Context) -> None:
        """The text of one list of ids per message, in order."""
        await self._stream(context, "DecodeStream", request_iterator, self._decode)

    async def _tokenize(self, request: tei_pb2.EncodeRequest) -> tei_pb2.EncodeResponse:
        [tokens] = await self._service.tokenize(
            [request.inputs],
            batch=False,
            add_special_tokens=request.add_special_tokens,
            prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
        )
        return tei_pb2.EncodeResponse(tokens=map(_simple_token, tokens))

    async def _decode(self, request: tei_pb2.DecodeRequest) -> tei_pb2.DecodeResponse:
        [text] = await self._service.decode(
            [list(request.ids)], batch=False, skip_special_tokens=request.skip_special_tokens
        )
        return tei_pb2.DecodeResponse(text=text)


class _OtherKinds(_Guard, tei_pb2_grpc.PredictServicer, tei_pb2_grpc.RerankServicer):
    """What only classifiers and rerankers do."""

    async def Predict(self, request: Any, context: Context) -> None:
        """Refused: no classifiers yet."""
        await self._refuse(
            context, "Predict", errors.backend("Model is not a classifier model", label="model_type")
        )

    async def Rerank(self, request: Any, context: Context) -> None:
        """Refused: no rerankers yet. The router's sentence, which lacks its usual prefix."""
        message = "model is not a classifier model"
        await self._refuse(
            context, "Rerank", errors.RequestError(errors.ErrorKind.BACKEND, message, label="model_type")
        )

    PredictPair = PredictStream = PredictPairStream = Predict
    RerankStream = Rerank


async def _abort(context: Context, error: errors.RequestError) -> None:
    code = getattr(grpc.StatusCode, error_table.GRPC_CODE[error.kind])
    await context.abort(code, error.message[:_LONGEST_DETAILS])


def _note(context: Context, name: str, began: float) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        code = getattr(context.code(), "name", "OK")  # the library says 0 while nothing else was said
        _log.debug("gRPC %s %s %.1f ms", name, code, (time.perf_counter() - began) * 1000)


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
