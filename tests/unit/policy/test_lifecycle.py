"""The lifecycle table, and what must hold however events arrive."""

from hypothesis import given
from hypothesis import strategies as st

from tei_manager.policy import lifecycle
from tei_manager.policy.lifecycle import Effect, Event, Fact, State, pull, step

EVENTS = st.lists(st.tuples(st.sampled_from(Event), st.sets(st.sampled_from(Fact))), max_size=60)


def walk(events: list[tuple[Event, set[Fact]]]) -> list[tuple[State, Event, lifecycle.Step]]:
    """The steps that a sequence of events really takes."""
    state, taken = State.ABSENT, []
    for event, facts in events:
        if (done := step(state, event, facts)) is not None:
            taken.append((state, event, done))
            state = done.next
    return taken


@given(EVENTS)
def test_announce_and_withdraw_alternate(events: list[tuple[Event, set[Fact]]]) -> None:
    doors = [
        effect
        for _, _, done in walk(events)
        for effect in done.effects
        if effect in (Effect.ANNOUNCE, Effect.WITHDRAW)
    ]
    assert doors[::2] == [Effect.ANNOUNCE] * len(doors[::2])
    assert doors[1::2] == [Effect.WITHDRAW] * len(doors[1::2])


@given(EVENTS)
def test_an_instance_that_cannot_be_called_is_never_ready(events: list[tuple[Event, set[Fact]]]) -> None:
    announced = False
    for _, _, done in walk(events):
        for effect in done.effects:
            announced = effect is Effect.ANNOUNCE or (announced and effect is not Effect.WITHDRAW)
        assert announced is (done.next is State.READY)


@given(EVENTS)
def test_failed_is_left_only_by_a_person(events: list[tuple[Event, set[Fact]]]) -> None:
    state = State.ABSENT
    for event, facts in events:
        done = step(state, event, facts)
        if state is State.FAILED and done is not None:
            assert Fact.BY_PERSON in facts
        state = done.next if done else state


@given(EVENTS)
def test_every_spawn_is_released_before_the_next(events: list[tuple[Event, set[Fact]]]) -> None:
    booked = False
    for _, _, done in walk(events):
        for effect in done.effects:
            if effect is Effect.RESERVE:
                booked = True
            if effect is Effect.RELEASE:
                booked = False
        if done.next in (State.ABSENT, State.BACKOFF, State.FAILED):
            assert not booked


@given(EVENTS, st.booleans())
def test_levels_are_reached_without_further_events(events: list[tuple[Event, set[Fact]]], wanted: bool) -> None:
    """After any history, pulling settles in a state that the level accepts or that waits for the world."""
    taken = walk(events)
    state = taken[-1][2].next if taken else State.ABSENT
    for _ in range(10):
        if (event := pull(state, wanted=wanted)) is None:
            break
        done = step(state, event)
        assert done is not None, "the level asks for something the table does not know"
        state = done.next
    assert pull(state, wanted=wanted) is None
    if not wanted:
        assert state in (State.ABSENT, State.DRAINING, State.STOPPING, State.FAILED)


def test_stopping_twice_equals_stopping_once() -> None:
    assert step(State.DRAINING, Event.UNWANTED) is None
    assert step(State.STOPPING, Event.UNWANTED) is None
    assert step(State.ABSENT, Event.UNWANTED) is None


def test_an_exit_of_a_stopped_instance_restarts_nothing() -> None:
    done = step(State.STOPPING, Event.EXITED)
    assert done is not None
    assert done.next is State.ABSENT
    assert pull(State.ABSENT, wanted=False) is None


def test_a_start_that_timed_out_for_good_fails_after_its_process_is_gone() -> None:
    stopping = step(State.STARTING, Event.DUE)
    assert stopping == lifecycle.Step(State.STOPPING, (Effect.STOP,))
    failed = step(State.STOPPING, Event.EXITED, [Fact.AFTER_FAULT, Fact.PERMANENT])
    assert failed is not None
    assert failed.next is State.FAILED


def test_every_state_can_be_reached_and_every_state_has_a_status() -> None:
    reached, grown = {State.ABSENT}, True
    while grown:
        more = {row.next for row in lifecycle.TABLE if row.state in reached} - reached
        reached |= more
        grown = bool(more)
    assert reached == set(State) == set(lifecycle.STATUS)
