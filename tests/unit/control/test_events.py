"""What the journal hears of an instance's life."""

from tei_manager.domain.instance import Status
from tei_manager.ports.driver import Exit
from tei_manager.ports.prober import Seen
from tei_manager.testing.plane import Plane


def heard(plane: Plane, name: str = "x") -> list[str]:
    """Each event of an instance in a few words."""
    words = []
    for event in plane.journal.events:
        if event.instance == name:
            change = f" {event.before}>{event.after}" if event.after else ""
            words.append(event.type.removeprefix("instance.") + change)
    return words


async def test_a_whole_life(plane: Plane) -> None:
    await plane.running("x")
    await plane.fleet.restart("x")
    await plane.until("x", Status.RUNNING)
    await plane.fleet.stop("x")
    await plane.fleet.delete("x")
    assert heard(plane) == [
        "created",
        "status stopped>starting",
        "status starting>running",
        "restarted",
        "status running>stopping",
        "status stopping>starting",
        "status starting>running",
        "status running>stopping",
        "status stopping>stopped",
        "deleted",
    ]


async def test_a_crash_is_told_with_its_reason_and_process(plane: Plane) -> None:
    await plane.running("x")
    pid = plane.get("x").pid
    plane.driver.exit("x", Exit(code=7))
    await plane.settle(1)
    [crash] = [event for event in plane.journal.events if event.before == "running"]
    assert crash.reason is not None
    assert "process exited with code 7" in crash.reason
    assert crash.data["pid"] == pid
    assert "restarted" in heard(plane)


async def test_adoption_after_a_crash_of_the_manager(plane: Plane) -> None:
    await plane.running("x")
    seen = len(plane.journal.events)
    await plane.crash()
    await plane.open()
    await plane.until("x", Status.RUNNING)
    assert [event.type for event in plane.journal.events[seen:]] == ["instance.adopted", "instance.status"]


async def test_probes_that_fail_are_counted(plane: Plane) -> None:
    await plane.running("x")
    plane.prober.says("x", Seen(False, "503"))
    await plane.settle(400)
    failures = [event.data["failures"] for event in plane.journal.events if event.type == "instance.probe_failed"]
    assert failures[:3] == [1, 2, 3]
