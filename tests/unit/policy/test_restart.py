"""When an ended instance is started again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.policy import restart
from tei_manager.policy.restart import GiveUp, Limits, Retry, Row


def judge(
    kind: ExitKind,
    row: Row | None = None,
    *,
    ever_ready: bool = True,
    limits: Limits | None = None,
    auto: bool = True,
) -> Retry | GiveUp:
    reason = ExitReason(kind, f"because of {kind}")
    return restart.verdict(
        reason, row or Row(), limits or Limits(), ever_ready=ever_ready, automatic_ports=auto, jitter=0.0
    )


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 0), (1, 30), (2, 60), (3, 120), (6, 900), (500, 900)])
def test_delays_double_up_to_the_maximum(restarts: int, seconds: float) -> None:
    assert judge(ExitKind.CRASH, Row(restarts=restarts)) == Retry(seconds)


@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_jitter_moves_a_delay_by_at_most_a_tenth(restarts: int, jitter: float) -> None:
    plain = restart.delay(restarts, Limits(), 0.0)
    assert 0.9 * plain <= restart.delay(restarts, Limits(), jitter) <= 1.1 * plain


@pytest.mark.parametrize("kind", [ExitKind.USAGE, ExitKind.MISSING])
def test_what_a_second_try_cannot_change_fails_at_once(kind: ExitKind) -> None:
    assert judge(kind) == GiveUp(f"because of {kind}")


def test_a_model_that_cannot_be_loaded_gets_a_second_try() -> None:
    assert isinstance(judge(ExitKind.MODEL), Retry)
    assert isinstance(judge(ExitKind.MODEL, Row().after(ExitKind.MODEL)), GiveUp)


def test_a_stolen_automatic_port_is_replaced_once() -> None:
    assert judge(ExitKind.PORT) == Retry(0.0, fresh_ports=True)
    again = judge(ExitKind.PORT, Row().after(ExitKind.PORT))
    assert isinstance(again, Retry)
    assert not again.fresh_ports


def test_a_stolen_explicit_port_is_waited_for() -> None:
    assert judge(ExitKind.PORT, auto=False) == Retry(0.0)
    assert judge(ExitKind.PORT, Row().after(ExitKind.PORT), auto=False) == Retry(30.0)


@pytest.mark.parametrize("kind", [ExitKind.ENDED, ExitKind.TIMEOUT])
def test_an_unexplained_first_start_fails_unless_told_to_retry(kind: ExitKind) -> None:
    assert isinstance(judge(kind, ever_ready=False), GiveUp)
    assert isinstance(judge(kind, ever_ready=False, limits=Limits(retry_first_start=True)), Retry)
    assert isinstance(judge(kind, ever_ready=True), Retry)


@pytest.mark.parametrize("kind", [ExitKind.CRASH, ExitKind.DOWNLOAD, ExitKind.UNHEALTHY])
def test_crashes_and_downloads_are_retried_even_on_the_first_start(kind: ExitKind) -> None:
    assert isinstance(judge(kind, ever_ready=False), Retry)


def test_giving_up_says_after_how_many_restarts_and_why() -> None:
    verdict = judge(ExitKind.CRASH, Row(restarts=3), limits=Limits(max_restarts=3))
    assert verdict == GiveUp("gave up after 3 restarts (because of crash)", "gave_up")
