import io
from collections.abc import Callable, Iterator

import pytest

from tei_manager.app.client.failures import CommandFailed
from tei_manager.app.client.progress import ERASE, Progress
from tei_manager.app.client.waiting import PATIENCE_S, Waiter


class Clock:
    """Time that passes only by sleeping."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Script:
    """A client that answers the states of one instance in turn, the last one for ever."""

    def __init__(self, *states: dict[str, object], log: Callable[[], object] = lambda: {"lines": []}) -> None:
        self.states, self.log, self.paths = list(states), log, list[str]()

    def get(self, path: str, query: object = None) -> object:
        self.paths.append(path)
        if path.endswith("/logs"):
            return self.log()
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def state(status: str, detail: str | None = None, **more: object) -> dict[str, object]:
    return {"name": "bge", "status": status, "detail": detail, "desired": "running", **more}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def err() -> Iterator[io.StringIO]:
    with io.StringIO() as stream:
        yield stream


def waiter(script: Script, clock: Clock, err: io.StringIO, width: int | None = None) -> Waiter:
    return Waiter(script, Progress(err, width=width, clock=clock), clock, clock.sleep)  # type: ignore[arg-type]


def test_off_a_terminal_each_change_is_one_line(clock: Clock, err: io.StringIO) -> None:
    script = Script(state("starting", "loading"), state("starting", "loading"), state("running"))
    waiter(script, clock, err).until_running(state("starting", "spawning"))
    assert err.getvalue().splitlines() == [
        "bge: starting (spawning) (0.0s)",
        "bge: starting (loading) (0.3s)",
        "bge: running (0.9s)",
    ]


def test_on_a_terminal_one_line_is_redrawn_and_wiped(clock: Clock, err: io.StringIO) -> None:
    waiter(Script(state("running")), clock, err, width=40).until_running(state("starting", "loading"))
    frames = err.getvalue().split(ERASE)[1:]
    assert frames[0] == "⠋ bge: starting (loading) 0.0s"
    assert frames[1] == "⠙ bge: starting (loading) 0.1s"
    assert frames[-1] == ""
    assert "\n" not in err.getvalue()


def test_a_line_never_fills_the_terminal(clock: Clock, err: io.StringIO) -> None:
    progress = Progress(err, width=30, clock=clock)
    progress.show(state("starting", "backoff", last_error="x" * 100))
    progress.wipe()
    assert max(len(frame) for frame in err.getvalue().split(ERASE)) < 30
    assert "…" in err.getvalue()


def test_a_terminal_without_unicode_gets_another_spinner(clock: Clock) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        Progress(stream, width=40, clock=clock).show(state("starting"))
        assert raw.getvalue().endswith(b"| bge: starting 0.0s")


def test_why_a_start_is_repeated_is_shown(clock: Clock, err: io.StringIO) -> None:
    Progress(err, width=None, clock=clock).show(state("starting", "backoff", last_error="exit\ncode 1"))
    assert err.getvalue() == "bge: starting (backoff): exit code 1 (0.0s)\n"


def test_an_old_error_of_a_running_instance_is_not_shown(clock: Clock, err: io.StringIO) -> None:
    Progress(err, width=None, clock=clock).show(state("running", last_error="long ago"))
    assert "long ago" not in err.getvalue()


def test_an_instance_that_runs_already_is_not_asked_for(clock: Clock, err: io.StringIO) -> None:
    script = Script(state("running"))
    assert waiter(script, clock, err).until_running(state("running")) == state("running")
    assert script.paths == []


def test_a_failed_instance_tells_its_error_and_the_end_of_its_log(clock: Clock, err: io.StringIO) -> None:
    script = Script(state("failed", last_error="exit code 1"), log=lambda: {"lines": ["loading", "no such file"]})
    with pytest.raises(CommandFailed) as failure:
        waiter(script, clock, err).until_running(state("starting"))
    assert failure.value.lines == (
        "instance 'bge' failed: exit code 1",
        "last lines of its log ('tei-manager instances logs bge' shows more):",
        "  loading",
        "  no such file",
    )


def test_a_log_that_cannot_be_read_does_not_hide_the_error(clock: Clock, err: io.StringIO) -> None:
    with pytest.raises(CommandFailed, match="instance 'bge' failed: no reason given"):
        waiter(Script(state("failed"), log=dict), clock, err).until_running(state("starting"))


def test_somebody_else_may_stop_it_meanwhile(clock: Clock, err: io.StringIO) -> None:
    with pytest.raises(CommandFailed, match="was stopped before"):
        waiter(Script(state("stopped", desired="stopped")), clock, err).until_running(state("starting"))


def test_the_middle_of_a_restart_is_no_end(clock: Clock, err: io.StringIO) -> None:
    script = Script(state("stopping"), state("stopped"), state("starting"), state("running"))
    assert waiter(script, clock, err).until_running(state("stopping"))["status"] == "running"


@pytest.mark.parametrize(
    ("instance", "asked", "limit"),
    [
        (state("starting"), None, PATIENCE_S),
        (state("starting", startup_timeout_secs=2), None, 12.0),
        (state("starting", startup_timeout_secs=2), 1.0, 1.0),
        (state("starting"), 0.0, 0.0),
    ],
)
def test_patience_ends(
    clock: Clock, err: io.StringIO, instance: dict[str, object], asked: float | None, limit: float
) -> None:
    with pytest.raises(CommandFailed, match=f"not running after {limit:g} s"):
        waiter(Script(instance), clock, err, width=80).until_running(instance, asked)
    assert limit <= clock.now - 100.0 < limit + 0.5
