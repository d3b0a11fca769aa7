"""The life of one instance, as a table. Everything about state is here; the docs draw it from here.

The table knows nothing of processes or time: somebody tells it events, it answers with the next state and with
effects to carry out, in order. A pair that is not listed does nothing, so a late or doubled event is harmless.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from tei_manager.domain.instance import Status


class State(StrEnum):
    ABSENT = "absent"  # no process, none wanted
    STARTING = "starting"  # on the way to answer
    READY = "ready"  # answers
    DRAINING = "draining"  # closed to new calls, finishing those in flight
    STOPPING = "stopping"  # being ended
    BACKOFF = "backoff"  # waiting before the next try
    FAILED = "failed"  # trying again would not help: a person must act


class Event(StrEnum):
    WANTED = "wanted"  # the level says: run
    UNWANTED = "unwanted"  # the level says: do not run, or a restart was asked for
    FETCHED = "fetched"  # weights are there, or the engine fetches them itself
    GRANTED = "granted"  # ports are booked and free
    HEALTHY = "healthy"  # it answered a real request
    UNHEALTHY = "unhealthy"  # it stopped answering
    EXITED = "exited"  # its process is proven gone, or could not be started
    DUE = "due"  # the state's time is over
    DRAINED = "drained"  # no call is in flight any more


class Effect(StrEnum):
    FETCH = "fetch"
    RESERVE = "reserve"
    SPAWN = "spawn"
    ANNOUNCE = "announce"
    WITHDRAW = "withdraw"
    DRAIN = "drain"
    STOP = "stop"
    RELEASE = "release"
    WAIT = "wait"


class Fact(StrEnum):
    """What decides between rows of the same pair."""

    NO_PROCESS = "no_process"  # nothing was spawned yet
    PERMANENT = "permanent"  # the restart policy gave up
    BY_PERSON = "by_person"  # somebody asked for it, not the level
    AFTER_FAULT = "after_fault"  # the stop was our answer to a fault, not to a wish


@dataclass(frozen=True, slots=True)
class Row:
    state: State
    event: Event
    next: State
    effects: tuple[Effect, ...] = ()
    when: frozenset[Fact] = frozenset()


_S, _E, _X = State, Event, Effect


def _row(state: State, event: Event, next_: State, *effects: Effect, when: Collection[Fact] = ()) -> Row:
    return Row(state, event, next_, effects, frozenset(when))


# of several rows for one pair the first whose facts all hold is taken
TABLE: tuple[Row, ...] = (
    _row(_S.ABSENT, _E.WANTED, _S.STARTING, _X.FETCH),
    _row(_S.STARTING, _E.FETCHED, _S.STARTING, _X.RESERVE),
    _row(_S.STARTING, _E.GRANTED, _S.STARTING, _X.SPAWN),
    _row(_S.STARTING, _E.HEALTHY, _S.READY, _X.ANNOUNCE),
    _row(_S.STARTING, _E.EXITED, _S.FAILED, _X.RELEASE, when=[Fact.PERMANENT]),
    _row(_S.STARTING, _E.EXITED, _S.BACKOFF, _X.RELEASE, _X.WAIT),
    _row(_S.STARTING, _E.DUE, _S.FAILED, _X.RELEASE, when=[Fact.NO_PROCESS, Fact.PERMANENT]),
    _row(_S.STARTING, _E.DUE, _S.BACKOFF, _X.RELEASE, _X.WAIT, when=[Fact.NO_PROCESS]),
    _row(_S.STARTING, _E.DUE, _S.STOPPING, _X.STOP),
    _row(_S.STARTING, _E.UNWANTED, _S.ABSENT, _X.RELEASE, when=[Fact.NO_PROCESS]),
    _row(_S.STARTING, _E.UNWANTED, _S.STOPPING, _X.STOP),
    _row(_S.READY, _E.UNWANTED, _S.DRAINING, _X.WITHDRAW, _X.DRAIN),
    _row(_S.READY, _E.UNHEALTHY, _S.STOPPING, _X.WITHDRAW, _X.STOP),
    _row(_S.READY, _E.EXITED, _S.FAILED, _X.WITHDRAW, _X.RELEASE, when=[Fact.PERMANENT]),
    _row(_S.READY, _E.EXITED, _S.BACKOFF, _X.WITHDRAW, _X.RELEASE, _X.WAIT),
    _row(_S.DRAINING, _E.DRAINED, _S.STOPPING, _X.STOP),
    _row(_S.DRAINING, _E.DUE, _S.STOPPING, _X.STOP),
    _row(_S.DRAINING, _E.UNHEALTHY, _S.STOPPING, _X.STOP),
    _row(_S.DRAINING, _E.EXITED, _S.ABSENT, _X.RELEASE),
    _row(_S.STOPPING, _E.EXITED, _S.FAILED, _X.RELEASE, when=[Fact.AFTER_FAULT, Fact.PERMANENT]),
    _row(_S.STOPPING, _E.EXITED, _S.BACKOFF, _X.RELEASE, _X.WAIT, when=[Fact.AFTER_FAULT]),
    _row(_S.STOPPING, _E.EXITED, _S.ABSENT, _X.RELEASE),
    _row(_S.STOPPING, _E.DUE, _S.STOPPING, _X.STOP),
    _row(_S.BACKOFF, _E.DUE, _S.ABSENT),
    _row(_S.BACKOFF, _E.UNWANTED, _S.ABSENT),
    _row(_S.BACKOFF, _E.WANTED, _S.STARTING, _X.FETCH, when=[Fact.BY_PERSON]),
    _row(_S.FAILED, _E.WANTED, _S.STARTING, _X.FETCH, when=[Fact.BY_PERSON]),
    _row(_S.FAILED, _E.UNWANTED, _S.ABSENT, when=[Fact.BY_PERSON]),
)

STATUS: dict[State, Status] = {
    State.ABSENT: Status.STOPPED,
    State.STARTING: Status.STARTING,
    State.READY: Status.RUNNING,
    State.DRAINING: Status.STOPPING,
    State.STOPPING: Status.STOPPING,
    State.BACKOFF: Status.STARTING,
    State.FAILED: Status.FAILED,
}


@dataclass(frozen=True, slots=True)
class Step:
    next: State
    effects: tuple[Effect, ...] = ()


def step(state: State, event: Event, facts: Collection[Fact] = ()) -> Step | None:
    """The next state and what to do; None = this event means nothing here."""
    held = frozenset(facts)
    for row in TABLE:
        if row.state is state and row.event is event and row.when <= held:
            return Step(row.next, row.effects)
    return None


def pull(state: State, *, wanted: bool) -> Event | None:
    """The event that moves `state` towards the level, None = nothing to do.

    Levels are compared after every step: a verb that came while something else was going on is never lost.
    """
    if wanted:
        return Event.WANTED if state is State.ABSENT else None
    return Event.UNWANTED if state in (State.STARTING, State.READY, State.BACKOFF) else None


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> ABSENT"]
    for row in TABLE:
        facts = f" [{', '.join(sorted(row.when))}]" if row.when else ""
        effects = f" / {', '.join(row.effects)}" if row.effects else ""
        lines.append(f"    {row.state.name} --> {row.next.name}: {row.event}{facts}{effects}")
    return "\n".join(lines) + "\n"
