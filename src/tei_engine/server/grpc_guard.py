"""What every gRPC service does around its work: key, trace, phase, errors → statuses, streams, log lines."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from tei_engine import errors
from tei_engine.server import error_table, tracing
from tei_engine.server.asking import Timings
from tei_engine.server.grpc_streams import in_order
from tei_engine.server.service import Phase, Service
from tei_manager.grpc.proto.tei.v1 import tei_pb2

_log = logging.getLogger(__name__)

_LONGEST_DETAILS = 1024  # details travel in trailers, which receivers bound to some kilobytes

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Response = TypeVar("Response")


class Guard:
    """What every servicer shares."""

    def __init__(self, service: Service, parallel: int) -> None:
        self._service = service
        self._parallel = parallel

    async def _answer(self, context: Context, name: str, work: Callable[[], Awaitable[Response]]) -> Response:
        """Run `work` for a caller who may, and turn its RequestError into a status."""
        with self._service.in_flight():
            answer: Response | None = None
            async with self._told(context, name):
                self._admit(context)
                answer = await work()
        return answer  # None beside the status of an error, where the library does not look at it

    async def _stream(
        self,
        context: Context,
        name: str,
        requests: AsyncIterator[Message],
        one: Callable[[Message], Awaitable[object]],
        most: int | None = None,
    ) -> None:
        """Answers in the order of requests, at most `most` in flight; the first failing one ends the stream."""
        parallel = min(self._parallel, most or self._parallel)

        async def counted(request: Message) -> object:
            if self._service.phase is Phase.DRAINING:  # else a client that goes on asking would hold the process
                raise errors.unhealthy(Phase.DRAINING.value)
            with self._service.in_flight():
                return await one(request)

        async with (
            self._told(context, name),
            aclosing(in_order(requests, counted, parallel=parallel)) as responses,
        ):
            self._admit(context)
            async for response in responses:
                with self._service.in_flight():
                    await context.write(response)

    @asynccontextmanager
    async def _told(self, context: Context, name: str) -> AsyncIterator[None]:
        """What goes wrong within the block becomes the call's status; and the call gets its line in the log."""
        began = time.perf_counter()
        try:
            yield
        except _NoKeyError:
            _end(context, "UNAUTHENTICATED", "No valid auth token")
        except errors.RequestError as error:
            _fail(context, error)
        except DecodeError:  # of a stream's message; before unary calls the library itself says UNKNOWN
            _fail(context, errors.invalid("the message could not be parsed"))
        except grpc.aio.InternalError as error:
            # so the library says that the call is over already: cancelled, or past its deadline
            raise asyncio.CancelledError from error
        except Exception as error:  # a fault of ours costs one answer, not the process
            _fail(context, errors.internal(error))
        finally:
            _note(context, name, began)

    def _is_left(self, direction: int) -> bool:
        """Whether texts are cut on the left. Raises RequestError for a number that the enum does not have."""
        if direction not in (tei_pb2.TRUNCATION_DIRECTION_LEFT, tei_pb2.TRUNCATION_DIRECTION_RIGHT):
            self._service.count_refused("validation")
            raise errors.invalid_input(f"unknown truncation direction {direction}")
        return direction == tei_pb2.TRUNCATION_DIRECTION_LEFT

    def _admit(self, context: Context) -> None:
        """Raise unless the caller has the key and the model is there."""
        told = dict(context.invocation_metadata() or ())
        tracing.follow(told.get("traceparent"))
        key = self._service.settings.api_key
        if key is not None:
            given = told.get("authorization", b"")
            raw = given.encode() if isinstance(given, str) else bytes(given)
            if not hmac.compare_digest(raw, b"Bearer " + key.encode()):
                raise _NoKeyError
        if self._service.phase is Phase.LOADING:
            raise errors.unhealthy(Phase.LOADING.value)


class _NoKeyError(Exception):
    """The caller does not have the key."""


def _fail(context: Context, error: errors.RequestError) -> None:
    errors.let_go(error)
    _end(context, error_table.GRPC_CODE[error.kind], error.message[:_LONGEST_DETAILS])


def _end(context: Context, code: str, details: str) -> None:
    """Set the status with which the call ends as soon as its method returns.

    Not by the library's `abort`: its exception stays in the context, and in the exception its frames, which hold
    the context and the request. A request of 32 MiB would be freed by a full garbage collection only.
    """
    context.set_code(getattr(grpc.StatusCode, code))
    context.set_details(details)


def _note(context: Context, name: str, began: float) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        code = getattr(context.code(), "name", "OK")  # the library says 0 while nothing else was said
        _log.debug("gRPC %s %s %.1f ms", name, code, (time.perf_counter() - began) * 1000)


def deadline(context: Context) -> float | None:
    """The caller's deadline as a time of `time.monotonic`."""
    left: float | None = context.time_remaining()
    # without a deadline the library says some three hundred years, not None
    return time.monotonic() + left if left is not None and left < 10**9 else None


def metadata(timings: Timings) -> tei_pb2.Metadata:
    """The numbers that every response carries."""
    return tei_pb2.Metadata(
        compute_chars=timings.characters,
        compute_tokens=timings.tokens,
        total_time_ns=int(timings.total * 1e9),
        tokenization_time_ns=int(timings.tokenization * 1e9),
        queue_time_ns=int(timings.queue * 1e9),
        inference_time_ns=int(timings.inference * 1e9),
    )


def cost(numbers: tei_pb2.Metadata) -> tuple[tuple[str, str], ...]:
    """The `x-*` keys of a unary call's initial metadata; durations are whole milliseconds."""
    total = str(round(numbers.total_time_ns / 1e6))
    return (
        ("x-compute-type", "cpu+optimized"),
        ("x-compute-time", total),
        ("x-total-time", total),
        ("x-compute-characters", str(numbers.compute_chars)),
        ("x-compute-tokens", str(numbers.compute_tokens)),
        ("x-tokenization-time", str(round(numbers.tokenization_time_ns / 1e6))),
        ("x-queue-time", str(round(numbers.queue_time_ns / 1e6))),
        ("x-inference-time", str(round(numbers.inference_time_ns / 1e6))),
    )
