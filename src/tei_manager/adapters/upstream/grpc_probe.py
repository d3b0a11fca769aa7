"""Questions to an engine over gRPC, in `tei.v1`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from tei_manager.adapters.upstream import refusals
from tei_manager.engines.metrics_reading import EngineInfo
from tei_manager.grpc.proto.tei.v1 import tei_pb2
from tei_manager.ports.prober import Seen

_WORD = "hello"
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # an engine is next door
    ("grpc.use_local_subchannel_pool", 1),  # or a closed channel's back-off lives on in the next
    ("grpc.enable_retries", 0),
)
_INFO = (("/tei.v1.Info/Info", tei_pb2.InfoRequest().SerializeToString()),)
_MODEL_TYPES = {
    tei_pb2.MODEL_TYPE_EMBEDDING: "embedding",
    tei_pb2.MODEL_TYPE_CLASSIFIER: "classifier",
    tei_pb2.MODEL_TYPE_RERANKER: "reranker",
}
# one tiny request per kind of model: the first that fits is the warm-up
_WARM_UPS = (
    ("/tei.v1.Embed/Embed", tei_pb2.EmbedRequest(inputs=_WORD).SerializeToString()),
    ("/tei.v1.Embed/EmbedSparse", tei_pb2.EmbedSparseRequest(inputs=_WORD).SerializeToString()),
    ("/tei.v1.Predict/Predict", tei_pb2.PredictRequest(inputs=_WORD).SerializeToString()),
    ("/tei.v1.Rerank/Rerank", tei_pb2.RerankRequest(query=_WORD, texts=[_WORD]).SerializeToString()),
)


class GrpcProbe:
    """One channel per address, replaced when it fails: a channel that could not connect waits longer and longer
    before it tries again, and a probe wants to know now.

    Raises nothing for what the engine does but TimeoutError.
    """

    def __init__(self) -> None:
        self._channels: dict[tuple[str, int], grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def info(self, host: str, port: int, *, key: str | None, timeout_secs: float) -> Seen:
        """Whether `tei.v1.Info/Info` answers."""
        return await self._first_fitting(host, port, _INFO, key, timeout_secs)

    async def about(self, host: str, port: int, *, key: str | None, timeout_secs: float) -> EngineInfo | None:
        """What `tei.v1.Info/Info` answers; None without an answer in time, or one that cannot be read."""
        (path, request) = _INFO[0]
        try:
            call: Any = self._channel(host, port).unary_unary(path)
            answer = await call(request, metadata=_metadata(key), timeout=timeout_secs)
            info = tei_pb2.InfoResponse.FromString(answer)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, ValueError):
            return None  # the channel stays as it is: it is for probes to judge it
        return EngineInfo(
            version=info.version or None,
            model_type=_MODEL_TYPES.get(info.model_type),
            model_sha=info.model_sha or None,
            model_dtype=info.model_dtype or None,
            max_input_length=info.max_input_length or None,
        )

    async def warm_up(self, host: str, port: int, *, key: str | None, timeout_secs: float) -> Seen:
        """One real request, of whichever kind fits the model."""
        return await self._first_fitting(host, port, _WARM_UPS, key, timeout_secs)

    def forget(self, host: str, port: int) -> None:
        """Close the channel to an address that is not asked any more."""
        if (channel := self._channels.pop((host, port), None)) is not None:
            task = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for host, port in tuple(self._channels):
            self.forget(host, port)
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _first_fitting(
        self, host: str, port: int, questions: Sequence[tuple[str, bytes]], key: str | None, timeout_secs: float
    ) -> Seen:
        channel = self._channel(host, port)
        seen = Seen(False)
        for path, request in questions:
            try:
                call: Any = channel.unary_unary(path)  # bytes in, bytes out: typed for messages only
                await call(request, metadata=_metadata(key), timeout=timeout_secs)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details() or ""
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    self._drop(host, port, channel)
                if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError from error
                seen = _meaning(code, details)
                if code is not grpc.StatusCode.FAILED_PRECONDITION or not refusals.is_wrong_kind(details):
                    return seen
            except grpc.aio.UsageError:  # closed by `forget` meanwhile
                return Seen(False, "closed the connection without an answer")
            else:
                return Seen(True)
        return seen

    def _channel(self, host: str, port: int) -> grpc.aio.Channel:
        if (channel := self._channels.get((host, port))) is None:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            channel = self._channels[host, port] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return channel

    def _drop(self, host: str, port: int, channel: grpc.aio.Channel) -> None:
        if self._channels.get((host, port)) is channel:
            self.forget(host, port)


def _metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key is not None else ()


def _meaning(code: grpc.StatusCode, details: str) -> Seen:
    text = refusals.shortened(details)
    if code is grpc.StatusCode.UNAVAILABLE:
        if "Connection refused" in details:
            return Seen(False, "connection refused", refused=True)
        if "http1.x" in details or "Failed parsing HTTP/2" in details:
            return Seen(False, "does not speak gRPC")
        return Seen(False, text or "unavailable")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        # Backend and tokenizer errors share this code; only the latter is about our text
        caller_fault = refusals.is_wrong_kind(details) or details.lower().startswith("tokenizer error")
    else:
        caller_fault = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    return Seen(False, f"{code.name}: {text}" if text else code.name, caller_fault=caller_fault)
