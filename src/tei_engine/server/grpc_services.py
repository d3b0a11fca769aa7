"""The services of `tei.v1` that every kind of model has, and the list of all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from tei_engine.models.kinds import Kind
from tei_engine.server import describe
from tei_engine.server.grpc_embed import Embed
from tei_engine.server.grpc_guard import Context, Guard
from tei_engine.server.grpc_scores import Predict, Rerank
from tei_engine.server.service import Service
from tei_engine.tokenization.tokenizer import Token
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

_MODEL_TYPES = {
    Kind.EMBEDDING: tei_pb2.MODEL_TYPE_EMBEDDING,
    Kind.SPLADE: tei_pb2.MODEL_TYPE_EMBEDDING,
    Kind.CLASSIFIER: tei_pb2.MODEL_TYPE_CLASSIFIER,
    Kind.RERANKER: tei_pb2.MODEL_TYPE_RERANKER,
}


def servicers(service: Service, parallel: int) -> list[tuple[Callable[[Any, grpc.aio.Server], None], Any]]:
    """Each service with the function that registers it. `parallel` bounds the messages of a stream in flight."""
    return [
        (tei_pb2_grpc.add_InfoServicer_to_server, _Info(service, parallel)),
        (tei_pb2_grpc.add_EmbedServicer_to_server, Embed(service, parallel)),
        (tei_pb2_grpc.add_TokenizeServicer_to_server, _Tokenize(service, parallel)),
        (tei_pb2_grpc.add_PredictServicer_to_server, Predict(service, parallel)),
        (tei_pb2_grpc.add_RerankServicer_to_server, Rerank(service, parallel)),
    ]


class _Info(Guard, tei_pb2_grpc.InfoServicer):
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
                model_type=_MODEL_TYPES[self._service.kind],
                max_concurrent_requests=info["max_concurrent_requests"],
                max_input_length=info["max_input_length"],
                max_batch_tokens=info["max_batch_tokens"],
                max_batch_requests=info["max_batch_requests"],
                max_client_batch_size=info["max_client_batch_size"],
                tokenization_workers=info["tokenization_workers"],
            )

        return await self._answer(context, "Info", work)


class _Tokenize(Guard, tei_pb2_grpc.TokenizeServicer):
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
            [request.ids], batch=False, skip_special_tokens=request.skip_special_tokens
        )
        return tei_pb2.DecodeResponse(text=text)


def _simple_token(token: Token) -> tei_pb2.SimpleToken:
    return tei_pb2.SimpleToken(
        id=token.id, text=token.text, special=token.special, start=token.start, stop=token.stop
    )
