"""Questions to tiny classifiers, rerankers and splade models."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from tests.soak.embedding import Ask, ask_each
from tests.soak.questions import (
    FULL,
    Fault,
    HttpQuestion,
    RpcQuestion,
    StreamQuestion,
    Table,
    anything,
    check_scores,
    post,
    same,
)
from tests.soak.texts import Pool

from tei_manager.grpc.proto.tei.v1 import tei_pb2

_TEXTS = 64
_QUERIES = 8
_MESSAGES = 24


class RerankerQuestions:
    """Questions to a reranker. `scores` [queries, texts] are raw, each pair scored alone."""

    def __init__(self, pool: Pool, scores: np.ndarray) -> None:
        self._pool = pool
        self._queries = pool.texts[:_QUERIES]
        self._scores = scores
        self._http = Table((8, self._rerank), (3, self._documents), (2, _no_texts), (2, _no_embedding))

    def http(self, rng: random.Random) -> HttpQuestion:
        """A ranking, or a refusal."""
        return self._http.draw(rng)

    def large(self, rng: random.Random) -> HttpQuestion:
        """A ranking that gives all texts back."""
        return self._rerank(rng, FULL)

    batch = large

    def rpc(self, rng: random.Random) -> RpcQuestion:
        """A ranking."""
        query, places = self._draw(rng)
        texts = [self._pool.texts[place] for place in places]
        request = tei_pb2.RerankRequest(query=self._queries[query], texts=texts, truncate=True, raw_scores=True)
        return RpcQuestion(
            "rpc-rerank",
            "Rerank.Rerank",
            request,
            lambda answer: self._check(query, places, [(one.index, one.score) for one in answer.ranks]),
            inputs=len(texts),
        )

    def stream(self, rng: random.Random) -> StreamQuestion:
        """One score of a pair per message."""
        pairs = [(rng.randrange(_QUERIES), place) for place in self._pool.some(rng, most=_MESSAGES)]
        requests = [
            tei_pb2.PredictPairRequest(
                inputs=[self._queries[query], self._pool.texts[place]], truncate=True, raw_scores=True
            )
            for query, place in pairs
        ]
        checks = [self._score_check(query, place) for query, place in pairs]
        return StreamQuestion("pair-stream", "Predict.PredictPairStream", requests, checks)

    def _score_check(self, query: int, place: int) -> Callable[[Any], None]:
        wanted = self._scores[query, place]
        return lambda answer: check_scores([one.score for one in answer.predictions], [wanted])

    def _draw(self, rng: random.Random, count: int | None = None) -> tuple[int, list[int]]:
        return rng.randrange(_QUERIES), self._pool.some(rng) if count is None else self._pool.draw(rng, count)

    def _rerank(self, rng: random.Random, count: int | None = None) -> HttpQuestion:
        query, places = self._draw(rng, count)
        texts = [self._pool.texts[place] for place in places]
        body = {"query": self._queries[query], "texts": texts, "truncate": True, "raw_scores": True}

        def check(raw: bytes) -> None:
            ranks = orjson.loads(raw)
            self._check(query, places, [(rank["index"], rank["score"]) for rank in ranks])
            same([rank["text"] for rank in ranks], [texts[rank["index"]] for rank in ranks], "texts")

        return post("rerank", "/rerank", body | {"return_text": True}, check, inputs=len(texts))

    def _documents(self, rng: random.Random) -> HttpQuestion:
        query, places = self._draw(rng)

        def check(raw: bytes) -> None:
            results = orjson.loads(raw)["results"]
            logits = [(one["index"], _logit(one["relevance_score"])) for one in results]
            self._check(query, places, logits)

        body = {"query": self._queries[query], "documents": [self._pool.texts[place] for place in places]}
        return post("v1-rerank", "/v1/rerank", body, check, inputs=len(places))

    def _check(self, query: int, places: list[int], ranks: list[tuple[int, float]]) -> None:
        same(sorted(index for index, _ in ranks), list(range(len(places))), "indices")
        given = [score for _, score in ranks]
        same(given, sorted(given, reverse=True), "order of scores")
        check_scores(given, [self._scores[query, places[index]] for index, _ in ranks])


class ClassifierQuestions:
    """Questions to a classifier. `scores` [texts, labels] are probabilities, each text classified alone."""

    def __init__(self, pool: Pool, scores: np.ndarray, labels: list[str]) -> None:
        self._pool = pool
        self._scores = scores
        self._labels = labels
        self._http = Table((8, self._predict), (4, self._predict_batch), (2, _no_embedding))

    def http(self, rng: random.Random) -> HttpQuestion:
        """One text or several, or a refusal."""
        return self._http.draw(rng)

    def large(self, rng: random.Random) -> HttpQuestion:
        """As many texts as a request may have."""
        return self._predict_batch(rng, FULL)

    batch = large

    def rpc(self, rng: random.Random) -> RpcQuestion:
        """One text."""
        [place] = self._pool.draw(rng)
        request, check = self._message(place)
        return RpcQuestion("rpc-predict", "Predict.Predict", request, check)

    def stream(self, rng: random.Random) -> StreamQuestion:
        """One text per message."""
        messages = [self._message(place) for place in self._pool.some(rng, most=_MESSAGES)]
        requests, checks = zip(*messages, strict=True)
        return StreamQuestion("predict-stream", "Predict.PredictStream", requests, checks)

    def _message(self, place: int) -> tuple[Any, Callable[[Any], None]]:
        request = tei_pb2.PredictRequest(inputs=self._pool.texts[place], truncate=True)
        return request, lambda answer: self._check(place, [(one.label, one.score) for one in answer.predictions])

    def _predict(self, rng: random.Random) -> HttpQuestion:
        [place] = self._pool.draw(rng)
        body = {"inputs": self._pool.texts[place], "truncate": True}
        return post("predict", "/predict", body, lambda raw: self._check(place, _shown(orjson.loads(raw))))

    def _predict_batch(self, rng: random.Random, count: int | None = None) -> HttpQuestion:
        places = self._pool.some(rng) if count is None else self._pool.draw(rng, count)

        def check(raw: bytes) -> None:
            for place, row in zip(places, orjson.loads(raw), strict=True):
                self._check(place, _shown(row))

        body = {"inputs": [[self._pool.texts[place]] for place in places], "truncate": True}
        return post("predict-batch", "/predict", body, check, inputs=len(places))

    def _check(self, place: int, given: list[tuple[str, float]]) -> None:
        by_label = dict(given)
        same(sorted(by_label), sorted(self._labels), "labels")
        check_scores([by_label[label] for label in self._labels], self._scores[place])


class SpladeQuestions:
    """Questions to a splade model. `vectors` are the sparse vectors of the pool's texts, each embedded alone."""

    def __init__(self, pool: Pool, vectors: list[dict[int, float]]) -> None:
        self._pool = pool
        self._vectors = vectors
        self._http = Table((8, self._sparse), (4, self._sparse_batch), (2, _no_normalize))

    def http(self, rng: random.Random) -> HttpQuestion:
        """One text or several, or a refusal."""
        return self._http.draw(rng)

    def large(self, rng: random.Random) -> HttpQuestion:
        """As many texts as a request may have."""
        return self._sparse_batch(rng, FULL)

    batch = large

    def rpc(self, rng: random.Random) -> RpcQuestion:
        """One text."""
        [place] = self._pool.draw(rng)
        request, check = self._message(place)
        return RpcQuestion("rpc-sparse", "Embed.EmbedSparse", request, check)

    def stream(self, rng: random.Random) -> StreamQuestion:
        """One text per message."""
        messages = [self._message(place) for place in self._pool.some(rng, most=_MESSAGES)]
        requests, checks = zip(*messages, strict=True)
        return StreamQuestion("sparse-stream", "Embed.EmbedSparseStream", requests, checks)

    def _message(self, place: int) -> tuple[Any, Callable[[Any], None]]:
        request = tei_pb2.EmbedSparseRequest(inputs=self._pool.texts[place], truncate=True)
        return request, lambda answer: self._check(
            place, {one.index: one.value for one in answer.sparse_embeddings}
        )

    def _sparse(self, rng: random.Random) -> HttpQuestion:
        [place] = self._pool.draw(rng)
        body = {"inputs": self._pool.texts[place], "truncate": True}
        return post("sparse", "/embed_sparse", body, lambda raw: self._check(place, _words(orjson.loads(raw)[0])))

    def _sparse_batch(self, rng: random.Random, count: int | None = None) -> HttpQuestion:
        places = self._pool.some(rng) if count is None else self._pool.draw(rng, count)

        def check(raw: bytes) -> None:
            for place, row in zip(places, orjson.loads(raw), strict=True):
                self._check(place, _words(row))

        body = {"inputs": [self._pool.texts[place] for place in places], "truncate": True}
        return post("sparse-batch", "/embed_sparse", body, check, inputs=len(places))

    def _check(self, place: int, given: dict[int, float]) -> None:
        """Weights that are nearly nothing may come and go."""
        wanted = self._vectors[place]
        for index in given.keys() | wanted.keys():
            check_scores(given.get(index, 0.0), wanted.get(index, 0.0))


def _shown(row: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(one["label"], one["score"]) for one in row]


def _words(row: list[dict[str, Any]]) -> dict[int, float]:
    return {one["index"]: one["value"] for one in row}


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _no_texts(rng: random.Random) -> HttpQuestion:
    return post("refused:no-texts", "/rerank", {"query": "a", "texts": []}, anything, inputs=0, status=400)


def _no_embedding(rng: random.Random) -> HttpQuestion:
    return post("refused:wrong-kind", "/embed", {"inputs": "a"}, anything, inputs=0, status=424)


def _no_normalize(rng: random.Random) -> HttpQuestion:
    return post("refused:normalize", "/embed", {"inputs": "a"}, anything, inputs=0, status=424)


def learn_reranker(ask: Ask, seed: int) -> RerankerQuestions:
    """Ask an idle engine for every pair, one by one. Raises Fault if scores do not tell texts apart."""
    pool = Pool(seed, count=_TEXTS)
    scores = np.asarray(
        [
            [
                ask("/rerank", {"query": query, "texts": [text], "truncate": True, "raw_scores": True})[0]["score"]
                for text in pool.texts
            ]
            for query in pool.texts[:_QUERIES]
        ]
    )
    _check_distinct(scores.std(axis=1))
    return RerankerQuestions(pool, scores)


def learn_classifier(ask: Ask, seed: int) -> ClassifierQuestions:
    """Ask an idle engine for every text, one by one. Raises Fault if scores do not tell texts apart."""
    pool = Pool(seed, count=_TEXTS)
    rows = [dict(_shown(ask("/predict", {"inputs": text, "truncate": True}))) for text in pool.texts]
    labels = sorted(rows[0])
    scores = np.asarray([[row[label] for label in labels] for row in rows])
    _check_distinct(scores.std(axis=0))
    return ClassifierQuestions(pool, scores, labels)


def learn_splade(ask: Ask, seed: int) -> SpladeQuestions:
    """Ask an idle engine for every text, one by one. Raises Fault if two have the same vector."""
    pool = Pool(seed, count=_TEXTS)
    rows = ask_each(ask, "/embed_sparse", [{"inputs": text, "truncate": True} for text in pool.texts])
    vectors = [_words(row) for row in rows]
    if len({tuple(sorted(vector.items())) for vector in vectors}) < len(vectors):
        raise Fault("two texts of the pool have the same sparse vector")
    return SpladeQuestions(pool, vectors)


def _check_distinct(spread: np.ndarray) -> None:
    if not (spread > 100 * 1e-4).all():
        raise Fault(f"scores of different texts lie too close together: standard deviations {spread}")
