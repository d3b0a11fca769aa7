"""One batch to one endpoint, over HTTP where it is spoken, else over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from tei_manager.domain import errors
from tei_manager.domain.request import EmbedCall, Input
from tei_manager.domain.target import Endpoint
from tei_manager.ports.grpc_upstream import EngineStatus, GrpcStream, GrpcUpstream
from tei_manager.ports.http_upstream import HttpUpstream
from tei_manager.serving import faults
from tei_manager.serving.providers import instances, tei_grpc
from tei_manager.serving.providers.instances import Facts, Vectors

INFO_TIMEOUT_SECS = 5.0


class Caller:
    """What an engine says of itself is learned once per endpoint uid, so a restarted instance is asked again."""

    def __init__(self, http: HttpUpstream, grpc: GrpcUpstream | None) -> None:
        self._http, self._grpc = http, grpc
        self._facts: dict[str, Facts] = {}
        self._asking: dict[str, asyncio.Task[Facts]] = {}
        self._without_base64: set[str] = set()

    async def embed(
        self, endpoint: Endpoint, call: EmbedCall, inputs: Sequence[Input], *, timeout_secs: float
    ) -> Vectors:
        """Vectors of one batch, checked. Raises `errors.UpstreamError` and its kinds."""
        if endpoint.http_port is not None:
            return await self._embed_http(endpoint, call, inputs, timeout_secs)
        if self._grpc is None:
            raise errors.UpstreamRefused(
                f"Instance '{endpoint.instance}' speaks gRPC only, which this route does not reach",
                status=501,
                code="OPERATION_NOT_SUPPORTED",
            )
        try:
            return await _embed_grpc(self._grpc, endpoint, call, inputs, timeout_secs)
        except EngineStatus as ended:
            raise faults.read_status(endpoint.instance, ended.status, str(ended)) from None

    async def _embed_http(
        self, endpoint: Endpoint, call: EmbedCall, inputs: Sequence[Input], timeout_secs: float
    ) -> Vectors:
        wants_base64 = endpoint.uid not in self._without_base64
        wire = instances.embed_request(endpoint, call, inputs, wants_base64=wants_base64)
        answer = await self._http.send(endpoint, wire, timeout_secs=timeout_secs)
        is_plain_needed = (
            wants_base64
            and endpoint.engine in instances.SPEAKS_OPENAI
            and answer.status in (400, 422)
            and b"encoding_format" in answer.body
        )
        if is_plain_needed:
            self._without_base64.add(endpoint.uid)
            return await self._embed_http(endpoint, call, inputs, timeout_secs)
        return instances.embed_answer(endpoint, answer, len(inputs))

    def known_facts(self, endpoint: Endpoint) -> Facts | None:
        return self._facts.get(endpoint.uid)

    async def facts(self, endpoint: Endpoint) -> Facts:
        """What the engine says of itself, asked once however many callers wait.

        Never raises: one that cannot be asked now has the defaults, and is asked again next time.
        """
        if (known := self._facts.get(endpoint.uid)) is not None:
            return known
        if endpoint.http_port is None:
            return Facts(max_batch=tei_grpc.MAX_BATCH)
        if (asking := self._asking.get(endpoint.uid)) is None:
            asking = asyncio.create_task(self._ask(endpoint), name=f"info {endpoint.uid}")
            self._asking[endpoint.uid] = asking
            asking.add_done_callback(lambda _: self._asking.pop(endpoint.uid, None))
        # a caller that leaves must not take the answer away from the others
        return await asyncio.shield(asking)

    def forget(self, uid: str) -> None:
        """An endpoint is gone: its facts and its HTTP connections go too."""
        self._facts.pop(uid, None)
        self._without_base64.discard(uid)
        self._http.forget(uid)

    async def _ask(self, endpoint: Endpoint) -> Facts:
        is_foreign = endpoint.engine in instances.SPEAKS_OPENAI
        default = instances.OPENAI_BATCH if is_foreign else instances.DEFAULT_BATCH
        try:
            answer = await self._http.send(endpoint, instances.INFO, timeout_secs=INFO_TIMEOUT_SECS)
        except errors.UpstreamError:
            return Facts(max_batch=default)
        facts = instances.info_of(answer, default_batch=default)
        # a server that is not TEI has no such page, and will not have one later
        if facts is None and not is_foreign:
            return Facts(max_batch=default)
        self._facts[endpoint.uid] = facts = facts or Facts(max_batch=default)
        return facts


async def _embed_grpc(
    grpc: GrpcUpstream, endpoint: Endpoint, call: EmbedCall, inputs: Sequence[Input], timeout_secs: float
) -> Vectors:
    async def text_of(each: Input) -> str:
        if isinstance(each, str):
            return each
        request = tei_grpc.decode_request(each)
        found = await grpc.unary(endpoint, tei_grpc.DECODE, request, metadata=(), timeout_secs=timeout_secs)
        return tei_grpc.decode_answer(endpoint, found.body)

    messages = [tei_grpc.embed_request(call, await text_of(each)) for each in inputs]
    if len(messages) == 1:
        one = await grpc.unary(endpoint, tei_grpc.EMBED, messages[0], metadata=(), timeout_secs=timeout_secs)
        return tei_grpc.embed_answers(endpoint, [one.body], 1)
    stream = grpc.stream(endpoint, tei_grpc.EMBED_STREAM, metadata=(), timeout_secs=timeout_secs)
    try:
        await stream.connected()
        bodies = await _converse(stream, messages)
    finally:
        stream.cancel()
    return tei_grpc.embed_answers(endpoint, bodies, len(messages))


async def _converse(stream: GrpcStream, messages: Sequence[bytes]) -> list[bytes]:
    """All answers. Sending runs beside: an engine stops reading while its answers are not taken."""

    async def send_all() -> None:
        # why the call ended is told by `receive`
        with contextlib.suppress(errors.UpstreamError):
            for message in messages:
                if not await stream.send(message):
                    return
            await stream.done_sending()

    sending = asyncio.create_task(send_all(), name="sending texts")
    try:
        bodies = []
        while (body := await stream.receive()) is not None:
            bodies.append(body)
        return bodies
    finally:
        sending.cancel()
