"""The services `tei.v1.Predict` and `tei.v1.Rerank`: labels of texts, ranks of texts against a query."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from statistics import fmean

from tei_engine import errors
from tei_engine.models.kinds import Kind
from tei_engine.server import asking, splitting
from tei_engine.server.asking import Manner, Options, Texts, Timings
from tei_engine.server.grpc_guard import Context, Guard, cost, deadline, metadata
from tei_engine.server.grpc_streams import in_order
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc


class Predict(Guard, tei_pb2_grpc.PredictServicer):
    """Unary calls fail fast when there are no permits; streams wait for them, and answer in order."""

    async def Predict(self, request: tei_pb2.PredictRequest, context: Context) -> tei_pb2.PredictResponse:
        """The labels of one text."""

        async def work() -> tei_pb2.PredictResponse:
            response = await self._predict(request, Manner(deadline=deadline(context)))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "Predict", work)

    async def PredictPair(self, request: tei_pb2.PredictPairRequest, context: Context) -> tei_pb2.PredictResponse:
        """The labels of two texts that are read together."""

        async def work() -> tei_pb2.PredictResponse:
            response = await self._predict_pair(request, Manner(deadline=deadline(context)))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "PredictPair", work)

    async def PredictStream(
        self, request_iterator: AsyncIterator[tei_pb2.PredictRequest], context: Context
    ) -> None:
        """The labels of one text per message."""
        one = partial(self._predict, manner=Manner(wait=True, deadline=deadline(context)))
        await self._stream(context, "PredictStream", request_iterator, one)

    async def PredictPairStream(
        self, request_iterator: AsyncIterator[tei_pb2.PredictPairRequest], context: Context
    ) -> None:
        """The labels of two texts per message."""
        one = partial(self._predict_pair, manner=Manner(wait=True, deadline=deadline(context)))
        await self._stream(context, "PredictPairStream", request_iterator, one)

    async def _predict(self, request: tei_pb2.PredictRequest, manner: Manner) -> tei_pb2.PredictResponse:
        return await self._labels((request.inputs,), request, manner)

    async def _predict_pair(self, request: tei_pb2.PredictPairRequest, manner: Manner) -> tei_pb2.PredictResponse:
        texts = tuple(request.inputs)
        if not 1 <= len(texts) <= 2:
            self._service.count_refused("validation")
            raise errors.invalid(f"`inputs` must have a single or two elements. Given: {len(texts)}")
        return await self._labels(texts, request, manner)

    async def _labels(
        self, texts: Texts, request: tei_pb2.PredictRequest | tei_pb2.PredictPairRequest, manner: Manner
    ) -> tei_pb2.PredictResponse:
        options = Options(truncate=request.truncate, left=self._is_left(request.truncation_direction))
        [row], timings = await self._service.predict([texts], options, manner, raw=request.raw_scores)
        return tei_pb2.PredictResponse(
            predictions=[tei_pb2.Prediction(score=one.score, label=one.label) for one in row],
            metadata=metadata(timings),
        )


class Rerank(Guard, tei_pb2_grpc.RerankServicer):
    """Both calls wait for permits."""

    async def Rerank(self, request: tei_pb2.RerankRequest, context: Context) -> tei_pb2.RerankResponse:
        """The ranks of texts against a query."""

        async def work() -> tei_pb2.RerankResponse:
            self._check_kind()
            options = Options(truncate=request.truncate, left=self._is_left(request.truncation_direction))
            manner = Manner(batch=True, wait=True, deadline=deadline(context))
            ranks, timings = await self._service.rerank(
                request.query, request.texts, options, manner, raw=request.raw_scores
            )
            response = tei_pb2.RerankResponse(
                ranks=[
                    tei_pb2.Rank(
                        index=one.index,
                        text=request.texts[one.index] if request.return_text else None,
                        score=one.score,
                    )
                    for one in ranks
                ],
                metadata=metadata(timings),
            )
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "Rerank", work)

    async def RerankStream(
        self, request_iterator: AsyncIterator[tei_pb2.RerankStreamRequest], context: Context
    ) -> tei_pb2.RerankResponse:
        """The ranks of all texts of the stream; its first message decides about scores and texts."""

        async def work() -> tei_pb2.RerankResponse:
            self._check_kind()
            response = await self._rank_stream(request_iterator, deadline(context))
            await context.send_initial_metadata(cost(response.metadata))
            return response

        return await self._answer(context, "RerankStream", work)

    async def _rank_stream(
        self, requests: AsyncIterator[tei_pb2.RerankStreamRequest], until: float | None
    ) -> tei_pb2.RerankResponse:
        began = time.perf_counter()
        first: tei_pb2.RerankStreamRequest | None = None
        texts: list[str] = []
        scores: list[float] = []
        costs: list[Timings] = []

        async def one(request: tei_pb2.RerankStreamRequest) -> tuple[float, Timings]:
            options = Options(truncate=request.truncate, left=self._is_left(request.truncation_direction))
            [rank], timings = await self._service.rerank(
                request.query, [request.text], options, Manner(wait=True, deadline=until), raw=raw
            )
            return rank.score, timings

        raw = False

        async def noted() -> AsyncIterator[tei_pb2.RerankStreamRequest]:
            nonlocal first, raw
            async for request in requests:
                if first is None:
                    first, raw = request, request.raw_scores
                if len(texts) == splitting.LARGEST:
                    raise errors.invalid(
                        f"batch size {len(texts) + 1} > maximum allowed batch size {splitting.LARGEST}",
                        label="batch_size",
                    )
                texts.append(request.text if first.return_text else "")
                yield request

        async with aclosing(in_order(noted(), one, parallel=self._parallel)) as answers:
            async for score, timings in answers:
                scores.append(score)
                costs.append(timings)
        if first is None:
            self._service.count_refused("validation")
            raise errors.empty("`texts` cannot be empty")
        return tei_pb2.RerankResponse(
            ranks=[
                tei_pb2.Rank(index=place, text=texts[place] if first.return_text else None, score=scores[place])
                for place in asking.descending(scores)
            ],
            metadata=metadata(_together(costs, time.perf_counter() - began)),
        )

    def _check_kind(self) -> None:
        """The router's sentences for other kinds of model, which lack its usual prefix here."""
        kind = self._service.kind
        if kind is not Kind.RERANKER:
            self._service.count_refused("model_type")
            wanted = "re-ranker" if kind is Kind.CLASSIFIER else "classifier"
            message = f"model is not a {wanted} model"
            raise errors.RequestError(errors.ErrorKind.BACKEND, message, label="model_type")


def _together(costs: Sequence[Timings], total: float) -> Timings:
    return Timings(
        total=total,
        tokenization=fmean(one.tokenization for one in costs),
        queue=fmean(one.queue for one in costs),
        inference=fmean(one.inference for one in costs),
        characters=sum(one.characters for one in costs),
        tokens=sum(one.tokens for one in costs),
    )
