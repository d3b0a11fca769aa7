"""The service `tei.v1.Embed`: vectors, token vectors, sparse vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from tei_engine.graph.outputs import Output
from tei_engine.server.asking import Answer, Manner, Options
from tei_engine.server.grpc_guard import Context, Guard, cost, deadline, metadata
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

_LARGE_ANSWERS = 64  # token vectors: up to a megabyte each, all held while the caller does not read

TextRequest = tei_pb2.EmbedRequest | tei_pb2.EmbedAllRequest | tei_pb2.EmbedSparseRequest


class Embed(Guard, tei_pb2_grpc.EmbedServicer):
    """Unary calls fail fast when there are no permits; streams wait for them, and answer in order."""

    async def Embed(self, request: tei_pb2.EmbedRequest, context: Context) -> tei_pb2.EmbedResponse:
        """One vector."""

        async def work() -> tei_pb2.EmbedResponse:
            response = await self._embed(request, Manner(deadline=deadline(context)))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "Embed", work)

    async def EmbedAll(self, request: tei_pb2.EmbedAllRequest, context: Context) -> tei_pb2.EmbedAllResponse:
        """The vectors of every token."""

        async def work() -> tei_pb2.EmbedAllResponse:
            response = await self._embed_all(request, Manner(deadline=deadline(context)))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "EmbedAll", work)

    async def EmbedSparse(
        self, request: tei_pb2.EmbedSparseRequest, context: Context
    ) -> tei_pb2.EmbedSparseResponse:
        """The words of a splade model, and their weights."""

        async def work() -> tei_pb2.EmbedSparseResponse:
            response = await self._embed_sparse(request, Manner(deadline=deadline(context)))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "EmbedSparse", work)

    async def EmbedStream(self, request_iterator: AsyncIterator[tei_pb2.EmbedRequest], context: Context) -> None:
        """One vector per message."""
        one = partial(self._embed, manner=Manner(wait=True, deadline=deadline(context)))
        await self._stream(context, "EmbedStream", request_iterator, one)

    async def EmbedAllStream(
        self, request_iterator: AsyncIterator[tei_pb2.EmbedAllRequest], context: Context
    ) -> None:
        """Token vectors per message."""
        one = partial(self._embed_all, manner=Manner(wait=True, deadline=deadline(context)))
        await self._stream(context, "EmbedAllStream", request_iterator, one, most=_LARGE_ANSWERS)

    async def EmbedSparseStream(
        self, request_iterator: AsyncIterator[tei_pb2.EmbedSparseRequest], context: Context
    ) -> None:
        """A sparse vector per message."""
        one = partial(self._embed_sparse, manner=Manner(wait=True, deadline=deadline(context)))
        await self._stream(context, "EmbedSparseStream", request_iterator, one)

    async def _embed(self, request: tei_pb2.EmbedRequest, manner: Manner) -> tei_pb2.EmbedResponse:
        options = Options(
            truncate=request.truncate,
            left=self._is_left(request.truncation_direction),
            prompt_name=_prompt_name(request),
            normalize=request.normalize if request.HasField("normalize") else True,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
        )
        answer = await self._service.embed([request.inputs], options, manner)
        # lists, because messages take numbers out of arrays five times slower
        return tei_pb2.EmbedResponse(embeddings=answer.rows[0].tolist(), metadata=metadata(answer.timings))

    async def _embed_all(self, request: tei_pb2.EmbedAllRequest, manner: Manner) -> tei_pb2.EmbedAllResponse:
        answer = await self._texts(request, manner, Output.TOKENS)
        rows = [tei_pb2.TokenEmbedding(embeddings=row) for row in answer.tokens[0].tolist()]
        return tei_pb2.EmbedAllResponse(token_embeddings=rows, metadata=metadata(answer.timings))

    async def _embed_sparse(
        self, request: tei_pb2.EmbedSparseRequest, manner: Manner
    ) -> tei_pb2.EmbedSparseResponse:
        answer = await self._texts(request, manner, Output.SPARSE)
        [(indices, weights)] = answer.sparse
        words = [
            tei_pb2.SparseValue(index=index, value=value)
            for index, value in zip(indices.tolist(), weights.tolist(), strict=True)
        ]
        return tei_pb2.EmbedSparseResponse(sparse_embeddings=words, metadata=metadata(answer.timings))

    async def _texts(
        self, request: tei_pb2.EmbedAllRequest | tei_pb2.EmbedSparseRequest, manner: Manner, want: Output
    ) -> Answer:
        options = Options(
            truncate=request.truncate,
            left=self._is_left(request.truncation_direction),
            prompt_name=_prompt_name(request),
        )
        return await self._service.embed([request.inputs], options, manner, want)


def _prompt_name(request: TextRequest) -> str | None:
    return request.prompt_name if request.HasField("prompt_name") else None
