"""The soak run's own judgement: what it must notice, it notices."""

from __future__ import annotations

import numpy as np
import pytest
from tests.soak.embedding import check_distinct
from tests.soak.questions import Fault, check_scores, check_vectors, unit
from tests.soak.readings import MIB, Reading, Trend, is_flat, total, trend
from tests.soak.tally import Tally
from tests.soak.texts import Pool


def readings(*mebibytes: float) -> list[Reading]:
    return [Reading(float(at), 0.0, int(rss * MIB), 14, 50) for at, rss in enumerate(mebibytes)]


def rss(reading: Reading) -> float:
    return reading.rss / MIB


def test_a_trend_compares_the_second_fifth_with_the_last():
    warming_up = [50, 90, 100, 100, 500, 100, 100, 100, 130, 130]
    assert trend(readings(*warming_up), rss) == Trend(100, 130)


def test_too_few_readings_are_no_trend():
    with pytest.raises(ValueError, match="9 readings are too few"):
        trend(readings(*[100] * 9), rss)


@pytest.mark.parametrize(
    ("early", "late", "flat"),
    [
        (100, 100, True),
        (100, 90, True),
        (100, 114, True),
        (100, 116, False),
        (1000, 1049, True),
        (1000, 1051, False),
    ],
)
def test_memory_is_flat_within_five_percent_or_fifteen_mebibytes(early, late, flat):
    assert is_flat(Trend(early * MIB, late * MIB)) is flat


def test_a_counter_is_summed_over_its_labels_and_no_other_counter():
    metrics = {'te_request_count{method="single"}': 3.0, 'te_request_count{method="batch"}': 4.0}
    assert total(metrics | {"te_request_count_of_others": 9.0}, "te_request_count") == 7


VECTORS = unit(np.eye(3) + 0.1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (VECTORS[[1, 0, 2]], "row 0 of 3"),
        (VECTORS[:2], "shape"),
        (VECTORS * 1.1, "row"),
        (VECTORS * np.nan, "row"),
    ],
)
def test_vectors_of_others_too_few_or_of_another_length_are_faults(given, reason):
    check_vectors(VECTORS.tolist(), VECTORS)
    with pytest.raises(Fault, match=reason):
        check_vectors(given.tolist(), VECTORS)


@pytest.mark.parametrize("given", [[0.5, 0.7002], [0.7, 0.5], [0.5, float("nan")]])
def test_other_scores_are_faults(given):
    check_scores([0.50001, 0.7], [0.5, 0.7])
    with pytest.raises(Fault):
        check_scores(given, [0.5, 0.7])


def test_texts_that_cannot_be_told_apart_are_refused_unless_they_are_the_same_to_the_model():
    alike = VECTORS[[0, 0, 1]]
    check_distinct(alike, [[1], [1], [2]])
    with pytest.raises(Fault, match="texts 0 and 1"):
        check_distinct(alike, [[1], [3], [2]])


async def test_a_refusal_for_want_of_permits_is_a_fault_while_there_are_permits():
    tally = Tally(permits=10)
    with tally.flight(6) as first:
        with tally.flight(4) as second:
            pass
        with pytest.raises(Fault, match="10 of 10"):
            tally.check_overload(second)
        with tally.flight(5):
            pass
    tally.check_overload(first)  # at some moment of its own there were 11


async def test_what_was_given_up_still_counts_as_in_flight_for_a_while():
    tally = Tally(permits=10)
    with tally.flight(6) as gone:
        gone.is_given_up = True
    with tally.flight(5) as refused:
        pass
    tally.check_overload(refused)
    assert tally.result()["given_up"] == 6


def test_the_pool_is_the_same_for_the_same_seed_and_has_texts_of_all_lengths():
    pool = Pool(3, ["known text"])
    assert pool.texts == Pool(3, ["known text"]).texts != Pool(4, ["known text"]).texts
    words = [len(text.split()) for text in pool.texts]
    assert len(words) == 200
    assert min(words) <= 3
    assert max(words) > 300
