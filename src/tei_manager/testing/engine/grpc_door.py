"""TEI's gRPC: tei.v1 and grpc.health.v1 over the answers that HTTP gives too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH

from tei_manager.grpc.proto.tei.v1 import tei_pb2 as pb
from tei_manager.testing.engine.command_line import Options
from tei_manager.testing.engine.conduct import Conduct, Timed, cost_headers
from tei_manager.testing.engine.faults import Fault, fault
from tei_manager.testing.engine.imitation import Answer, Imitation, not_a_reranker

_PARALLEL = 1024  # messages of one stream that are worked on at a time
_LIMIT = 32 << 20
Context = Any  # grpc.aio.ServicerContext, generic in the two message types of each rpc


@dataclass(frozen=True, slots=True)
class Rpc:
    """One call: its answer as (message without metadata, cost). `family` = the te_* series that counts it."""

    service: str
    name: str
    request: Any
    answer: Callable[[Any], Answer[Any]]
    family: str | None
    counts: bool = True  # an inference request, as the script counts them
    waits: bool = False


class GrpcDoor:
    """The listener of tei.v1."""

    def __init__(self, options: Options, imitation: Imitation, conduct: Conduct) -> None:
        self._options = options
        self._imitation = imitation
        self._conduct = conduct
        self._server: Any = None

    async def listen(self, address: str) -> None:
        """Serve on HOST:PORT; RuntimeError if it cannot be bound."""
        # without so_reuseport=0 two processes would share a busy port instead of one being refused
        settings = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", _LIMIT),
            ("grpc.max_send_message_length", -1),
            # as TEI's server: pings of a quiet connection are answered, not counted as abuse
            ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.absolute_max_metadata_size", 32 * 1024),
        ]
        self._server = grpc.aio.server(options=settings)
        handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for rpc in self._rpcs():
            methods = handlers.setdefault(rpc.service, {})
            methods[rpc.name] = _unary(rpc, self._one(rpc))
            if rpc.name != "Rerank":
                methods[f"{rpc.name}Stream"] = _stream(rpc, self._many(rpc))
        handlers["Rerank"]["RerankStream"] = grpc.stream_unary_rpc_method_handler(
            self._rerank_stream,
            request_deserializer=pb.RerankStreamRequest.FromString,
            response_serializer=pb.RerankResponse.SerializeToString,
        )
        handlers["Info"] = {"Info": _handler(self._info, pb.InfoRequest)}
        generic = [grpc.method_handlers_generic_handler(f"tei.v1.{name}", m) for name, m in handlers.items()]
        health = {"Check": _handler(self._check, health_pb2.HealthCheckRequest)}
        self._server.add_generic_rpc_handlers([*generic, grpc.method_handlers_generic_handler(HEALTH, health)])
        self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, within: float | None) -> None:
        """Accept no more; running calls finish, those left after `within` seconds are cancelled."""
        await self._server.stop(86400.0 if within is None else within)

    def _rpcs(self) -> Iterable[Rpc]:
        return (
            Rpc("Embed", "Embed", pb.EmbedRequest, self._embed, "embed"),
            Rpc("Embed", "EmbedSparse", pb.EmbedSparseRequest, self._embed_sparse, "embed"),
            Rpc("Embed", "EmbedAll", pb.EmbedAllRequest, self._embed_all, "embed"),
            Rpc("Predict", "Predict", pb.PredictRequest, self._predict, "predict"),
            Rpc("Predict", "PredictPair", pb.PredictPairRequest, self._predict, "predict"),
            Rpc("Rerank", "Rerank", pb.RerankRequest, self._rerank, "predict", waits=True),
            Rpc("Tokenize", "Tokenize", pb.EncodeRequest, self._tokenize, None, counts=False),
            Rpc("Tokenize", "Decode", pb.DecodeRequest, self._decode, None, counts=False),
        )

    def _one(self, rpc: Rpc) -> Callable[[Any, Context], Any]:
        async def call(request: Any, context: Context) -> Any:
            answer = await self._guarded(context, lambda: self._run(rpc, request, rpc.waits))
            if rpc.counts:
                await context.send_initial_metadata(tuple(cost_headers(answer).items()))
            return _with_metadata(answer)

        return call

    def _many(self, rpc: Rpc) -> Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]:
        async def call(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            """Answers in the order of the requests, many being worked on at a time; a fault ends the stream."""
            tasks: asyncio.Queue[asyncio.Task[Timed[Any]] | None] = asyncio.Queue(_PARALLEL)
            started: set[asyncio.Task[Timed[Any]]] = set()

            async def read() -> None:
                async for request in requests:
                    task = asyncio.create_task(self._run(rpc, request, True))
                    started.add(task)
                    task.add_done_callback(started.discard)
                    # a fault behind the one that ends the stream is nobody's concern
                    task.add_done_callback(lambda done: done.cancelled() or done.exception())
                    await tasks.put(task)
                await tasks.put(None)

            await self._guarded(context, _nothing)
            reader = asyncio.create_task(read())
            try:
                while (task := await tasks.get()) is not None:
                    current = task
                    yield _with_metadata(await self._guarded(context, lambda: current))  # noqa: B023
            finally:
                for pending in (reader, *started):
                    pending.cancel()
                await asyncio.gather(reader, *started, return_exceptions=True)

        return call

    async def _guarded(self, context: Context, work: Callable[[], Any]) -> Any:
        """Check the key and the state, do the work; a fault becomes the status of the call."""
        try:
            key = self._options.api_key
            if key is not None and _metadata(context).get("authorization") != f"Bearer {key}":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")
            if error := self._conduct.refusal():
                raise error
            return await work()
        except Fault as error:
            await context.abort(grpc.StatusCode[error.grpc_code], error.message)

    async def _run(self, rpc: Rpc, request: Any, waits: bool) -> Timed[Any]:
        if not rpc.counts:
            answer = rpc.answer(request)
            return Timed(answer.value, answer.characters, answer.tokens, 0.0)
        inputs = len(request.texts) if isinstance(request, pb.RerankRequest) else 1
        method = "batch" if isinstance(request, pb.RerankRequest) else "single"
        return await self._conduct.run(
            lambda: rpc.answer(request), inputs=inputs, method=method, family=rpc.family, waits=waits
        )

    async def _info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        return await self._guarded(context, self._info_or_fault)  # type: ignore[no-any-return]

    async def _info_or_fault(self) -> pb.InfoResponse:
        if error := self._conduct.ill():
            raise error
        options = self._options
        kind = self._imitation.kind
        return pb.InfoResponse(
            version=options.version,
            docker_label="testing-engine",
            model_id=options.model_id,
            model_sha=options.model_sha,
            model_dtype=options.dtype,
            model_type=f"MODEL_TYPE_{'EMBEDDING' if kind == 'splade' else kind.upper()}",
            max_concurrent_requests=options.max_concurrent_requests,
            max_input_length=options.script.max_input_length,
            max_batch_tokens=options.max_batch_tokens,
            max_batch_requests=options.max_batch_requests,
            max_client_batch_size=options.max_client_batch_size,
            tokenization_workers=options.tokenization_workers,
        )

    async def _check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        """grpc.health.v1: the services that fit the model serve while the engine is healthy."""
        kind = self._imitation.kind
        fitting = {"embedding": ["Embed"], "splade": ["Embed"], "classifier": ["Predict"]}.get(
            kind, ["Predict", "Rerank"]
        )
        services = {f"tei.v1.{name}" for name in ("Embed", "Predict", "Rerank", "Info", "Tokenize")}
        if request.service and request.service not in services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        well = self._conduct.ill() is None
        always = request.service in ("", "tei.v1.Info", "tei.v1.Tokenize")
        serving = always or (well and request.service.removeprefix("tei.v1.") in fitting)
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    def _embed(self, request: pb.EmbedRequest) -> Answer[Any]:
        answer = self._imitation.embed(
            request.inputs,
            truncate=request.truncate,
            normalize=request.normalize if request.HasField("normalize") else True,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            prompt_name=_prompt(request),
        )
        return _message(answer, pb.EmbedResponse(embeddings=answer.value))

    def _embed_sparse(self, request: pb.EmbedSparseRequest) -> Answer[Any]:
        answer = self._imitation.embed_sparse(
            request.inputs, truncate=request.truncate, prompt_name=_prompt(request)
        )
        values = [pb.SparseValue(index=index, value=value) for index, value in answer.value]
        return _message(answer, pb.EmbedSparseResponse(sparse_embeddings=values))

    def _embed_all(self, request: pb.EmbedAllRequest) -> Answer[Any]:
        answer = self._imitation.embed_all(request.inputs, truncate=request.truncate, prompt_name=_prompt(request))
        rows = [pb.TokenEmbedding(embeddings=row) for row in answer.value]
        return _message(answer, pb.EmbedAllResponse(token_embeddings=rows))

    def _predict(self, request: pb.PredictRequest | pb.PredictPairRequest) -> Answer[Any]:
        inputs = [request.inputs] if isinstance(request, pb.PredictRequest) else list(request.inputs)
        answer = self._imitation.predict(inputs, truncate=request.truncate, raw_scores=request.raw_scores)
        rows = [pb.Prediction(score=score, label=label) for score, label in answer.value]
        return _message(answer, pb.PredictResponse(predictions=rows))

    def _rerank(self, request: pb.RerankRequest) -> Answer[Any]:
        if error := not_a_reranker(self._imitation.kind):
            raise error
        answer = self._imitation.rerank(
            request.query, request.texts, truncate=request.truncate, raw_scores=request.raw_scores
        )
        texts = request.texts if request.return_text else None
        ranks = [pb.Rank(index=i, score=score, text=texts[i] if texts else None) for i, score in answer.value]
        return _message(answer, pb.RerankResponse(ranks=ranks))

    def _tokenize(self, request: pb.EncodeRequest) -> Answer[Any]:
        answer = self._imitation.tokenize(
            request.inputs, specials=request.add_special_tokens, prompt_name=_prompt(request)
        )
        tokens = [
            pb.SimpleToken(id=t.id, text=t.text, special=t.special, start=t.start, stop=t.stop)
            for t in answer.value
        ]
        return _message(answer, pb.EncodeResponse(tokens=tokens))

    def _decode(self, request: pb.DecodeRequest) -> Answer[Any]:
        answer = self._imitation.decode(list(request.ids), skip_specials=request.skip_special_tokens)
        return _message(answer, pb.DecodeResponse(text=answer.value))

    async def _rerank_stream(
        self, requests: AsyncIterator[pb.RerankStreamRequest], context: Context
    ) -> pb.RerankResponse:
        """One ranking of all messages; the first one decides about scores and texts."""

        async def work() -> Timed[Any]:
            messages = [message async for message in requests]
            if not messages:
                raise fault("Empty", "`texts` cannot be empty")
            first = messages[0]
            request = pb.RerankRequest(
                query=first.query,
                texts=[message.text for message in messages],
                truncate=first.truncate,
                raw_scores=first.raw_scores,
                return_text=first.return_text,
            )
            rpc = Rpc("Rerank", "Rerank", pb.RerankRequest, self._rerank, "predict")
            return await self._run(rpc, request, True)

        answer = await self._guarded(context, work)
        await context.send_initial_metadata(tuple(cost_headers(answer).items()))
        return _with_metadata(answer)  # type: ignore[no-any-return]


async def _nothing() -> None:
    """The work of a call that is only checked."""


def _prompt(request: Any) -> str | None:
    return request.prompt_name if request.HasField("prompt_name") else None


def _message(answer: Answer[Any], message: Any) -> Answer[Any]:
    return Answer(message, answer.characters, answer.tokens)


def _with_metadata(answer: Timed[Any]) -> Any:
    nanoseconds = int(answer.seconds * 1e9)
    answer.value.metadata.CopyFrom(
        pb.Metadata(
            compute_chars=answer.characters,
            compute_tokens=answer.tokens,
            total_time_ns=nanoseconds,
            inference_time_ns=nanoseconds,
        )
    )
    return answer.value


def _metadata(context: Context) -> dict[str, Any]:
    return {entry[0]: entry[1] for entry in context.invocation_metadata() or ()}


def _serializer(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


def _handler(call: Any, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=_serializer
    )


def _unary(rpc: Rpc, call: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return _handler(call, rpc.request)


def _stream(rpc: Rpc, call: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.stream_stream_rpc_method_handler(
        call, request_deserializer=rpc.request.FromString, response_serializer=_serializer
    )
