"""Which ports instances get."""

from hypothesis import given
from hypothesis import strategies as st

from tei_manager.policy import ports

WITHIN = ports.Range(start=8080, end=8090, metrics_start=9100)


def always(_: int) -> bool:
    return True


def test_the_next_port_is_behind_the_last_one_and_round_the_range() -> None:
    assert ports.main_port(WITHIN, (), 8079, always) == 8080
    assert ports.main_port(WITHIN, (), 8083, always) == 8084
    assert ports.main_port(WITHIN, (), 8089, always) == 8080


def test_second_ports_come_from_the_top() -> None:
    assert ports.second_port(WITHIN, {8089}, always) == 8088


def test_metrics_ports_come_from_their_own_window() -> None:
    assert ports.metrics_port(WITHIN, {9100, 9101}, always) == 9102


@given(st.sets(st.integers(8080, 8089)), st.sets(st.integers(8080, 8089)), st.integers(0, 65535))
def test_a_port_is_found_exactly_if_one_is_left(taken: set[int], foreign: set[int], after: int) -> None:
    left = set(range(8080, 8090)) - taken - foreign
    found = ports.main_port(WITHIN, taken, after, lambda port: port not in foreign)
    assert (found in left) if left else found is None
