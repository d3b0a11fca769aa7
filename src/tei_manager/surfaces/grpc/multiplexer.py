"""The calls that pass through to an engine: one handler for unary calls, one for streams, bytes in and out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
import structlog

from tei_manager.domain import errors
from tei_manager.ports.grpc_metrics import GrpcMetrics
from tei_manager.serving.cutting import Cuttable
from tei_manager.serving.forward import UNRESOLVED, Call, Forwarder
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc import errors as statuses
from tei_manager.surfaces.grpc import metadata, targets
from tei_manager.surfaces.grpc.methods import METHODS, Method
from tei_manager.surfaces.grpc.relay import Context, Relay
from tei_manager.surfaces.grpc.silence import Silence

log = structlog.get_logger("tei_manager.grpc")


class _Admission(Cuttable):
    """A caller's call, known for as long as it runs."""

    __slots__ = ("_door",)

    def __init__(self, door: Multiplexer) -> None:
        super().__init__()
        self._door = door

    def __enter__(self) -> Self:
        self._door._admit(self)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._door._leave(self)
        super().__exit__(kind, error, trace)


class Multiplexer:
    """The handlers by path. `request_timeout_secs` is for unary calls, and for a stream's silence; 0 = none."""

    def __init__(
        self,
        router: Router,
        forwarder: Forwarder,
        metrics: GrpcMetrics,
        *,
        request_timeout_secs: float,
        default_target: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forwarder, self._metrics, self._clock = forwarder, metrics, clock
        self._timeout_secs = request_timeout_secs
        self.is_draining = False
        self._calls: set[_Admission] = set()
        self._is_empty = asyncio.Event()
        native = targets.Native(router, default_target)
        self.handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {
            path: self._handler(method, reader)
            for method in METHODS
            for path, reader in (
                (method.multiplexer_path, targets.Wrapped(method.word)),
                (method.path, native),
            )
        }

    async def drain(self, secs: float) -> int:
        """Refuse new calls, wait for those in flight, then cut the rest. Returns how many were cut."""
        self.is_draining = True
        if self._calls and secs > 0:
            try:
                async with asyncio.timeout(secs):
                    await self._is_empty.wait()
            except TimeoutError:
                pass
        left = tuple(self._calls)
        for call in left:
            call.cut(_shutting_down())
        return len(left)

    def _admit(self, call: _Admission) -> None:
        if self.is_draining:
            raise _shutting_down()
        self._calls.add(call)

    def _leave(self, call: _Admission) -> None:
        self._calls.discard(call)
        if self.is_draining and not self._calls:
            self._is_empty.set()

    def _handler(self, method: Method, reader: targets.Reader) -> grpc.RpcMethodHandler[Any, Any]:
        if method.is_stream:

            async def stream(messages: object, context: Context) -> None:
                await self._stream(method, reader, context)

            # on the wire a call with one answer is a stream of one
            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(request: bytes, context: Context) -> bytes:
            return await self._unary(method, reader, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, method: Method, reader: targets.Reader, request: bytes, context: Context) -> bytes:
        began, code, call = self._clock(), "CANCELLED", None
        given = cast(targets.Given, context.invocation_metadata())
        passed, request_id = metadata.inward(given)
        try:
            with _Admission(self):
                routing, payload = reader.first(request, given)
                call = Call(
                    method=method.label,
                    path=method.path,
                    routing=routing,
                    payload=payload,
                    metadata=passed,
                    deadline=self._deadline(context, self._timeout_secs),
                )
                answer = await self._forwarder.unary(call)
                await context.send_initial_metadata(metadata.opening(answer.initial, call.instance, request_id))
                if answer.trailing:
                    context.set_trailing_metadata(metadata.outward(answer.trailing))
                code = "OK"
                return answer.body
        except grpc.aio.BaseError:
            raise  # the caller left while we answered: the library knows
        except Exception as error:
            told = self._render(error, request_id)
            code = told.code.name
            await context.abort(told.code, told.message, told.trailing)
        finally:
            secs = self._clock() - began
            instance, in_engine = (call.instance, call.engine_secs) if call is not None else (UNRESOLVED, 0.0)
            self._metrics.ended(instance, method.label, code, secs, own_secs=secs - in_engine)

    async def _stream(self, method: Method, reader: targets.Reader, context: Context) -> None:
        began, code, call = self._clock(), "CANCELLED", None
        given = cast(targets.Given, context.invocation_metadata())
        passed, request_id = metadata.inward(given)
        try:
            with _Admission(self):
                first = await context.read()
                if first is grpc.aio.EOF:
                    raise errors.CallerError("Empty stream")
                began = self._clock()
                routing, payload = reader.first(first, given)
                call = Call(
                    method=method.label,
                    path=method.path,
                    routing=routing,
                    payload=payload,
                    metadata=passed,
                    deadline=self._deadline(context, 0),
                )
                silence = Silence(self._timeout_secs, answers_once=method.answers_once)
                await self._forwarder.stream(call, Relay(call, reader, context, request_id, silence).run)
                code = "OK"
        except grpc.aio.BaseError:
            raise
        except Exception as error:
            told = self._render(error, request_id)
            code = told.code.name
            await context.abort(told.code, told.message, told.trailing)
        finally:
            instance = call.instance if call is not None else UNRESOLVED
            self._metrics.ended(instance, method.label, code, self._clock() - began)

    def _deadline(self, context: Context, limit_secs: float) -> float | None:
        """On our clock: the earlier of the caller's deadline and our limit from now on."""
        left = cast("float | None", context.time_remaining())
        if limit_secs and (left is None or left > limit_secs):
            left = limit_secs
        return None if left is None else self._clock() + left

    def _render(self, error: Exception, request_id: str) -> statuses.Rendered:
        told = statuses.render(error, request_id)
        if not isinstance(error, errors.TeiManagerError):
            log.error("gRPC call failed", request_id=request_id, exc_info=error)
        return told


def _shutting_down() -> errors.NotReady:
    return errors.NotReady("Server is shutting down", code="SHUTTING_DOWN")
