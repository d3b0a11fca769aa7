"""What every gRPC service does around its work: key, phase, errors → statuses, streams, a line in the log."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from tei_engine import errors
from tei_engine.server import error_table
from tei_engine.server.asking import Timings
from tei_engine.server.grpc_streams import in_order
from tei_engine.server.service import Phase, Service, internal_error
from tei_manager.grpc.proto.tei.v1 import tei_pb2

_log = logging.getLogger(__name__)

_LONGEST_DETAILS = 1024  # details travel in trailers, which receivers bound to some kilobytes

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Response = TypeVar("Response")


class Guard:
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

    async def _admit(self, context: Context) -> None:
        key = self._service.settings.api_key
        if key is not None:
            given = dict(context.invocation_metadata() or ()).get("authorization", b"")
            raw = given.encode() if isinstance(given, str) else bytes(given)
            if not hmac.compare_digest(raw, b"Bearer " + key.encode()):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")
        if self._service.phase is Phase.LOADING:
            raise errors.unhealthy(Phase.LOADING.value)


async def _abort(context: Context, error: errors.RequestError) -> None:
    code = getattr(grpc.StatusCode, error_table.GRPC_CODE[error.kind])
    await context.abort(code, error.message[:_LONGEST_DETAILS])


def _note(context: Context, name: str, began: float) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        code = getattr(context.code(), "name", "OK")  # the library says 0 while nothing else was said
        _log.debug("gRPC %s %s %.1f ms", name, code, (time.perf_counter() - began) * 1000)


def deadline(context: Context) -> float | None:
    """The caller's deadline as a time of `time.monotonic`."""
    left: float | None = context.time_remaining()
    # without a deadline the library says some three hundred years, not None
    return time.monotonic() + left if left is not None and left < 10**9 else None


def is_left(direction: int) -> bool:
    """Whether texts are cut on the left. Raises RequestError for a number that the enum does not have."""
    if direction not in (tei_pb2.TRUNCATION_DIRECTION_LEFT, tei_pb2.TRUNCATION_DIRECTION_RIGHT):
        raise errors.invalid_input(f"unknown truncation direction {direction}")
    return direction == tei_pb2.TRUNCATION_DIRECTION_LEFT


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
