"""gRPC to engines by grpcio: messages pass as bytes, errors become ours."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import grpc
import grpc.aio

from tei_manager.domain import errors
from tei_manager.domain.target import Endpoint
from tei_manager.ports.grpc_metrics import GrpcMetrics, NoMetrics
from tei_manager.ports.grpc_upstream import EngineStatus, GrpcAnswer, GrpcStream, Metadata, Unreachable

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
METADATA_BYTES = 16 * 1024

# grpcio gives no other sign that a status was made on this side of the wire than its text
_TRANSPORT = re.compile(
    r"failed to connect to all addresses|^Stream removed|[Ss]ocket closed|Connection (reset|refused)|Broken pipe"
    r"|GOAWAY|Cancelling all calls|Endpoint closing|transport (is )?clos|(keepalive|ping) (watchdog )?timeout"
    r"|recvmsg|sendmsg|Name resolution|DNS resolution|[Cc]hannel closed|connection attempt timed out"
)
_DEADLINE = re.compile(r"^(Stream removed \()?Deadline Exceeded\)?$")
_TOO_LARGE = re.compile(r"CLIENT: (?:Received|Sent) message larger than max \((\d+) vs\. (\d+)\)")
_TRANSPORT_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


class GrpcUpstreams:
    """Implements `ports.grpc_upstream.GrpcUpstream`: one channel per endpoint uid.

    A channel is opened by its first call and closed by `forget` or after `idle_secs` without calls. Use it in one
    event loop.
    """

    def __init__(
        self,
        *,
        connect_timeout_secs: float = 5.0,
        max_message_bytes: int = 40 * 1024 * 1024,
        idle_secs: float = 600.0,
        metrics: GrpcMetrics | None = None,
    ) -> None:
        self._options = _channel_options(connect_timeout_secs, max_message_bytes)
        self._idle_secs = idle_secs
        self._metrics = metrics or NoMetrics()
        self._lines: dict[str, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def unary(
        self, endpoint: Endpoint, path: str, request: bytes, *, metadata: Metadata, timeout_secs: float | None
    ) -> GrpcAnswer:
        if timeout_secs is not None and timeout_secs <= 0:
            raise errors.UpstreamTimeout("Request timeout")
        line = self._line(endpoint)
        line.calls += 1
        try:
            call = line.unary(path)(request, metadata=_with_key(endpoint, metadata), timeout=timeout_secs)
            body = await call
            return GrpcAnswer(body, tuple(await call.initial_metadata()), tuple(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            raise _translated(endpoint, error) from None
        except grpc.aio.UsageError:
            raise Unreachable(endpoint.instance) from None
        except asyncio.CancelledError:
            _tell_cut(endpoint)
            raise
        finally:
            line.calls -= 1
            line.used_at = self._now()

    def stream(
        self, endpoint: Endpoint, path: str, *, metadata: Metadata, timeout_secs: float | None
    ) -> GrpcStream:
        line = self._line(endpoint)
        call = line.stream(path)(metadata=_with_key(endpoint, metadata), timeout=timeout_secs)
        return _Stream(endpoint, line, call, self._now)

    def forget(self, uid: str) -> None:
        if (line := self._lines.pop(uid, None)) is not None:
            task = asyncio.get_running_loop().create_task(line.channel.close(), name=f"close {uid}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for uid in tuple(self._lines):
            self.forget(uid)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _line(self, endpoint: Endpoint) -> _Line:
        if (line := self._lines.get(endpoint.uid)) is None:
            if (address := endpoint.grpc_address) is None:
                raise errors.Unsupported(f"Instance '{endpoint.instance}' does not speak gRPC")
            line = self._lines[endpoint.uid] = _Line(grpc.aio.insecure_channel(address, options=self._options))
            self._metrics.connected(endpoint.instance)
            if self._sweep is None:
                self._schedule_sweep()
        line.used_at = self._now()
        return line

    def _schedule_sweep(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(self._idle_secs / 4, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        limit = self._now() - self._idle_secs
        for uid in [uid for uid, line in self._lines.items() if not line.calls and line.used_at <= limit]:
            self.forget(uid)
        if self._lines:
            self._schedule_sweep()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _with_key(endpoint: Endpoint, metadata: Metadata) -> Metadata:
    if endpoint.key is None:
        return metadata
    return (*metadata, ("authorization", f"Bearer {endpoint.key}"))


class _Line:
    """One channel, with the callables it has made: making one costs more than a lookup."""

    __slots__ = ("_streams", "_unaries", "calls", "channel", "used_at")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.used_at = 0.0
        self._unaries: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    def unary(self, path: str) -> Any:
        if (made := self._unaries.get(path)) is None:
            made = self._unaries[path] = self.channel.unary_unary(path)
        return made

    def stream(self, path: str) -> Any:
        if (made := self._streams.get(path)) is None:
            made = self._streams[path] = self.channel.stream_stream(path)
        return made


class _Stream:
    def __init__(self, endpoint: Endpoint, line: _Line, call: Any, now: Any) -> None:
        self._endpoint, self._line, self._call, self._now = endpoint, line, call, now
        self._is_over = False
        line.calls += 1

    async def connected(self) -> None:
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise _translated(self._endpoint, error) from None
        except asyncio.CancelledError:
            _tell_cut(self._endpoint)
            raise

    async def send(self, message: bytes) -> bool:
        # not call.write(): when the engine ends the call at that moment, it replaces the engine's status, which is
        # about to be read, by an INTERNAL of its own. Needs `connected` first, which write() would wait for.
        if self._call.done():
            return False
        try:
            await self._call._cython_call.send_serialized_message(message)
        except grpc.aio.InternalError:
            return False  # why it ended is told to whoever receives
        return True

    async def done_sending(self) -> None:
        with contextlib.suppress(grpc.aio.InternalError):
            await self._call.done_writing()

    async def initial_metadata(self) -> Metadata:
        return tuple(await self._call.initial_metadata())

    async def receive(self) -> bytes | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(self._endpoint, error) from None
        except asyncio.CancelledError:
            _tell_cut(self._endpoint)
            raise
        return None if message is grpc.aio.EOF else message

    async def trailing_metadata(self) -> Metadata:
        return tuple(await self._call.trailing_metadata())

    def cancel(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._line.calls -= 1
            self._line.used_at = self._now()
            self._call.cancel()


def _tell_cut(endpoint: Endpoint) -> None:
    """grpcio tells a closed channel as a cancellation; one that this task was not asked for is no cancellation."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Unreachable(endpoint.instance, is_answered=True) from None


def _translated(endpoint: Endpoint, error: grpc.aio.AioRpcError) -> errors.UpstreamError:
    code, text = error.code(), error.details() or ""
    is_answered = bool(tuple(error.initial_metadata() or ()))
    if code in _TRANSPORT_CODES and (_TRANSPORT.search(text) or (endpoint.grpc_address or "\0") in text):
        return Unreachable(endpoint.instance, is_answered=is_answered)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and _DEADLINE.search(text):
        return errors.UpstreamTimeout("Request timeout")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (large := _TOO_LARGE.search(text)):
        text = f"Message larger than max ({large[1]} vs. {large[2]} bytes)"
    return EngineStatus(
        code.value[0], text, trailing=tuple(error.trailing_metadata() or ()), is_answered=is_answered
    )


def _channel_options(connect_timeout_secs: float, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.primary_user_agent", "tei-manager"),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # a restarted instance must not meet a connection of the one before
        ("grpc.use_local_subchannel_pool", 1),
        # repeating a call is decided where the other candidates are known
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # the least time of one attempt to connect is also the longest, as long as the pauses are shorter
        ("grpc.min_reconnect_backoff_ms", max(100, int(connect_timeout_secs * 1000))),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
