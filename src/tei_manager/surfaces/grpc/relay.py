"""One stream passed through: the caller's messages to the engine, the engine's answers to the caller."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from tei_manager.domain.target import Endpoint
from tei_manager.ports.grpc_upstream import GrpcStream
from tei_manager.serving.forward import Call
from tei_manager.surfaces.grpc import metadata, targets
from tei_manager.surfaces.grpc.silence import Silence

_TURNS = 3

Context = grpc.aio.ServicerContext[Any, Any]


class Relay:
    """At most one message is held in each direction; beyond that HTTP/2 flow control makes both sides wait.

    `call.payload` is the first message. A later one that is refused ends the caller's half: answers to the
    messages before it are delivered, then the refusal is raised.
    """

    def __init__(
        self, call: Call, reader: targets.Reader, context: Context, request_id: str, silence: Silence
    ) -> None:
        self._call, self._reader, self._context = call, reader, context
        self._request_id, self._silence = request_id, silence
        self._refusal: Exception | None = None

    async def run(self, stream: GrpcStream, endpoint: Endpoint) -> None:
        """Return when the engine has ended the call well. Raises what the engine, the silence limit or a refused
        message give."""
        async with self._silence:
            sending = asyncio.create_task(self._send(stream), name="stream to engine")
            try:
                await self._receive(stream, endpoint)
            finally:
                sending.cancel()
                await asyncio.wait((sending,))
        if self._refusal is not None:
            raise self._refusal
        self._context.set_trailing_metadata(metadata.outward(await stream.trailing_metadata()))

    async def _receive(self, stream: GrpcStream, endpoint: Endpoint) -> None:
        self._silence.waiting()
        initial = await stream.initial_metadata()
        opening = metadata.opening(initial, endpoint.instance, self._request_id)
        if initial:
            await self._context.send_initial_metadata(opening)
        message = await stream.receive()
        if not initial:
            # nothing came with the beginning, or there was none: an error then ends the call without ours
            await self._context.send_initial_metadata(opening)
        while message is not None:
            self._silence.answered()
            await self._context.write(message)
            self._silence.waiting()
            message = await stream.receive()

    async def _send(self, stream: GrpcStream) -> None:
        message = self._call.payload
        try:
            while await stream.send(message):
                self._silence.sent()
                received = await self._context.read()
                if received is grpc.aio.EOF:
                    await self._let_cancellation_come()
                    break
                message = self._reader.later(received, self._call.routing)
        except Exception as error:
            self._refusal = error
        self._silence.all_sent()
        await stream.done_sending()

    async def _let_cancellation_come(self) -> None:
        """A broken stream reads as an end, too, and the library tells of the breaking a moment later.

        Another read is answered after that news; the turns are those it takes to reach this task.
        """
        await self._context.read()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
