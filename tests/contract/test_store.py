"""One contract for every store, and what the state file must survive."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tei_manager.adapters.store.lock import StateLock
from tei_manager.adapters.store.toml_state import TomlStore
from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, EngineKind, InstanceSpec, Origin, Ports, Protocol
from tei_manager.ports.driver import Handle
from tei_manager.ports.store import Record, State, Store
from tei_manager.testing.store import MemoryStore

HANDLE = Handle(driver="subprocess", pid=42, start_ticks=9876, boot_id="b-1", nonce="ab" * 16)


def record(name: str = "bge", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "spec": InstanceSpec(name=name, model_id="org/model"),
        "ports": Ports(main=8080, grpc=8179, metrics=9100),
        "created_at": 1763492400.123456,
        "desired": Desired.RUNNING,
        "origin": Origin.API,
    }
    return Record(**values | changes)


FULL = State(
    records=(
        record(
            spec=InstanceSpec(
                name="full",
                model_id="org/model",
                revision="main",
                port=8081,
                engine=EngineKind.COMMAND,
                gpu_ids=(0, "GPU-1"),
                extra_args=("--x", 'a "b" \\ ü\n\t'),
                env={"HF_HOME": "/x", "EMPTY": ""},
                startup_timeout_secs=1.5,
                protocol=Protocol.HTTP,
                aliases=("a", "b"),
                autostart=False,
                command=("run", "{port}"),
                health_path="/ok",
            ),
            desired=Desired.STOPPED,
            origin=Origin.CONFIG,
            restarts=3,
            ever_ready=True,
            intent_nonce="cd" * 16,
            handle=HANDLE,
            seed={"name": "full", "extra_args": [], "env": {"A": "1"}, "port": 0},
        ),
        record("second", spec=InstanceSpec(name="second", model_id="/m", gpu_ids=()), ports=Ports(main=8082)),
    ),
    deleted_seeds={"old": {"name": "old", "model_id": "org/x", "aliases": ["y"]}, "bare": {}},
)


@dataclass
class Rig:
    store: Store
    reopen: Callable[[], Store]
    fail: Callable[[bool], None]


@pytest.fixture(params=["memory", "toml"])
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    if request.param == "memory":
        memory = MemoryStore()

        def fail_memory(is_on: bool) -> None:
            memory.failure = OSError(errno.ENOSPC, "No space left on device") if is_on else None

        yield Rig(memory, lambda: MemoryStore(memory.state), fail_memory)
        return
    stores = [TomlStore(tmp_path / "deep" / "state.toml")]

    def reopen() -> Store:
        stores.append(TomlStore(tmp_path / "deep" / "state.toml"))
        return stores[-1]

    def fail(is_on: bool) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full) if is_on else monkeypatch.undo()

    yield Rig(stores[0], reopen, fail)
    for store in stores:
        await store.close()


async def test_nothing_saved_is_a_fresh_start(rig: Rig) -> None:
    loaded = await rig.store.load()
    assert loaded.state == State()
    assert loaded.warnings == ()


async def test_what_was_saved_is_loaded(rig: Rig) -> None:
    await rig.store.save(FULL)
    for store in (rig.store, rig.reopen()):
        loaded = await store.load()
        assert loaded.state == FULL
        assert loaded.warnings == ()


async def test_the_last_save_stands(rig: Rig) -> None:
    for restarts in range(5):
        await rig.store.save(State(records=(record(restarts=restarts),)))
    assert (await rig.reopen().load()).state.records[0].restarts == 4


async def test_of_saves_at_once_the_last_stands(rig: Rig) -> None:
    await asyncio.gather(*(rig.store.save(State(records=(record(restarts=n),))) for n in range(50)))
    assert (await rig.reopen().load()).state.records[0].restarts == 49


async def test_a_failed_save_raises_and_changes_nothing(rig: Rig) -> None:
    await rig.store.save(FULL)
    rig.fail(True)
    with pytest.raises(OSError, match="No space"):
        await rig.store.save(State())
    rig.fail(False)
    assert (await rig.reopen().load()).state == FULL
    await rig.store.save(State())
    assert (await rig.reopen().load()).state == State()


async def test_a_cancelled_save_takes_nothing_from_the_next(rig: Rig) -> None:
    first = asyncio.create_task(rig.store.save(State(records=(record(restarts=1),))))
    await asyncio.sleep(0)
    first.cancel()
    await rig.store.save(FULL)
    assert (await rig.reopen().load()).state == FULL


# -- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    return tmp_path / "state.toml"


async def load(path: Path, **more: Any) -> tuple[State, list[str], str]:
    """State, warning codes, all messages."""
    store = TomlStore(path, **more)
    try:
        loaded = await store.load()
    finally:
        await store.close()
    return loaded.state, [code for code, _ in loaded.warnings], "\n".join(text for _, text in loaded.warnings)


async def save(path: Path, *states: State) -> None:
    store = TomlStore(path)
    for state in states:
        await store.save(state)
    await store.close()


async def test_the_file_is_private_dated_toml_with_a_backup(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.json"
    await save(path, State(records=(record(restarts=1),)), State(records=(record(restarts=2),)))
    values = tomllib.loads(path.read_text())
    assert values["version"] == 1
    assert values["last_updated"].tzinfo is not None
    assert values["instances"][0]["ports"] == {"main": 8080, "grpc": 8179, "metrics": 9100}
    assert "port" not in values["instances"][0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (await load(path.with_name("state.json.bak")))[0].records[0].restarts == 1
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["state.json", "state.json.bak"]


async def test_queued_saves_are_superseded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = TomlStore._save

    def slow(self: TomlStore, state: State) -> None:
        written.append(state.records[0].restarts)
        original(self, state)

    monkeypatch.setattr(TomlStore, "_save", slow)
    store = TomlStore(path)
    await asyncio.gather(*(store.save(State(records=(record(restarts=n),))) for n in range(100)))
    await store.close()
    assert written[-1] == 99
    assert len(written) < 100


async def test_an_empty_file_alone_is_a_fresh_start(path: Path) -> None:
    path.write_text("\n")
    assert (await load(path))[:2] == (State(), [])


async def test_what_a_crash_left_is_swept(path: Path) -> None:
    await save(path, FULL)
    (path.parent / ".state.toml.x1y2").write_text("half")
    (path.parent / ".state.toml.bak.77").write_text("half")
    assert (await load(path))[0] == FULL
    assert [entry.name for entry in path.parent.iterdir()] == ["state.toml"]


async def test_a_missing_file_beside_a_backup_is_told(path: Path) -> None:
    await save(path, FULL, FULL)
    path.unlink()
    state, codes, text = await load(path)
    assert (state, codes) == (State(), ["STATE_MISSING"])
    assert str(path) in text
    # saving on must not overwrite the only copy that is left
    before = path.with_name("state.toml.bak").read_bytes()
    await save(path, State(), State())
    (kept,) = path.parent.glob("state.toml.kept-*")
    assert str(kept) in text
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"version = ", b"\xff\xfe", b'version = "1"', b"version = 0", b"instances = 3", b"a = " + b"[" * 9999],
)
async def test_an_unreadable_file_is_replaced_by_its_backup(path: Path, content: bytes) -> None:
    await save(path, FULL, State())
    path.write_bytes(content)
    state, codes, text = await load(path)
    assert state == FULL
    assert codes == ["STATE_RECOVERED"]
    (aside,) = path.parent.glob("state.toml.corrupt-*")
    assert aside.read_bytes() == content
    assert str(aside) in text
    # the name was never absent, and a crash now loses nothing
    assert (await load(path))[:2] == (FULL, [])


@pytest.mark.parametrize("backup", [None, b"also = "])
async def test_without_a_usable_backup_nothing_is_touched(path: Path, backup: bytes | None) -> None:
    path.write_bytes(b"version = ")
    if backup is not None:
        path.with_name("state.toml.bak").write_bytes(backup)
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    with pytest.raises(errors.StateError, match="move it away") as refusal:
        await load(path)
    assert str(path) in str(refusal.value)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


async def test_a_later_version_is_refused_even_with_a_backup(path: Path) -> None:
    await save(path, FULL, FULL)
    path.write_text("version = 2\n")
    with pytest.raises(errors.StateError, match="later release"):
        await load(path)
    assert path.read_text() == "version = 2\n"


async def test_a_folder_in_its_place_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(errors.StateError, match="cannot be read"):
        await load(path)


async def test_one_bad_entry_is_skipped_and_the_rest_load(path: Path) -> None:
    good = '[[instances]]\nname="{}"\nmodel_id="org/m"\nport=8080\ncreated_at=1.5\n'
    path.write_text(
        "version = 1\nfuture = 1\n"
        + good.format("one")
        + good.format("two").replace("8080", "80")
        + good.format("ONE")
        + good.format("three").replace("created_at=1.5", "created_at=true")
        + good.format("four").replace("port=8080", "")
        + good.format("five")
        + "novel = 2\n"
        + '[[deleted_seeds]]\nname = 3\n[[deleted_seeds]]\nname = "gone"\n'
    )
    state, codes, text = await load(path)
    assert [entry.spec.name for entry in state.records] == ["one", "five"]
    assert state.deleted_seeds == {"gone": {}}
    assert codes.count("STATE_ENTRY_SKIPPED") == 5
    assert codes.count("STATE_UNKNOWN_KEY") == 2
    for word in ('"two"', '"ONE"', '"three"', '"four"', "future", "novel", ".skipped-"):
        assert word in text
    (aside,) = path.parent.glob("state.toml.skipped-*")
    assert aside.read_text() == path.read_text()


async def test_a_damaged_handle_leaves_its_nonce_to_search_for(path: Path) -> None:
    await save(path, State(records=(record(handle=HANDLE),)))
    path.write_text(path.read_text().replace("pid = 42", "pid = 0"))
    state, codes, _ = await load(path)
    assert codes == ["STATE_HANDLE_LOST"]
    assert state.records[0].handle is None
    assert state.records[0].intent_nonce == HANDLE.nonce


async def test_the_file_of_the_peer_is_read(path: Path) -> None:
    path.write_text(
        textwrap.dedent("""
        last_updated = "2025-11-18T19:00:00.123456789Z"

        [[instances]]
        name = "bge-small"
        model_id = "BAAI/bge-small-en-v1.5"
        port = 8080
        max_batch_tokens = 8192
        max_concurrent_requests = 256
        pooling = "cls"
        gpu_id = 1
        prometheus_port = 9100
        extra_args = ["--auto-truncate"]
        created_at = "2025-11-18T19:00:00.123456789+00:00"

        [[instances]]
        name = "splade"
        model_id = "naver/splade"
        port = 8081
        max_batch_tokens = 16384
        max_concurrent_requests = 512
        pooling = "splade"
        extra_args = []
        created_at = 2025-11-18T19:00:00Z
        """)
    )
    state, codes, _ = await load(path, default_engine=EngineKind.TEI)
    assert codes == []
    first, second = state.records
    assert first.spec == InstanceSpec(
        name="bge-small",
        model_id="BAAI/bge-small-en-v1.5",
        port=8080,
        engine=EngineKind.TEI,
        max_batch_tokens=8192,
        max_concurrent_requests=256,
        pooling="cls",
        gpu_id=1,
        prometheus_port=9100,
        extra_args=("--auto-truncate",),
    )
    assert first.ports == Ports(main=8080, metrics=9100)
    assert first.created_at == pytest.approx(1763492400.123456)
    assert (first.desired, first.origin) == (Desired.RUNNING, Origin.API)
    assert second.created_at == 1763492400.0
    assert second.ports == Ports(main=8081)


async def test_a_text_that_is_no_unicode_does_not_spoil_the_file(path: Path) -> None:
    await save(path, State(records=(record(spec=InstanceSpec(name="a", model_id="m", extra_args=("\ud800",))),)))
    assert (await load(path))[0].records[0].spec.extra_args == ("?",)


# -- any state ----------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)
scalars = st.one_of(words, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
tables = st.dictionaries(words, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4)
ports = st.integers(1024, 65535)
specs = st.builds(
    InstanceSpec,
    name=names,
    model_id=st.just("org/model"),
    port=st.none() | ports,
    engine=st.sampled_from([EngineKind.EMBEDDED, EngineKind.TEI]),
    max_batch_tokens=st.integers(1, 10_000_000),
    pooling=st.sampled_from([None, "cls", "last-token"]),
    gpu_ids=st.none() | st.lists(st.integers(0, 9), max_size=3).map(tuple),
    prometheus_port=st.none() | st.just(0) | ports,
    extra_args=st.lists(words, max_size=3).map(tuple),
    env=st.dictionaries(st.from_regex(r"A[A-Z_]{0,5}", fullmatch=True), words, max_size=3),
    startup_timeout_secs=st.none() | st.floats(0.001, 86400),
    protocol=st.sampled_from([None, *Protocol][:4]),
    autostart=st.booleans(),
)
handles = st.builds(
    Handle,
    driver=words,
    pid=st.integers(1, 2**22),
    start_ticks=st.integers(0, 2**60),
    boot_id=words,
    nonce=words,
)
records = st.builds(
    Record,
    spec=specs,
    ports=st.builds(Ports, main=ports, grpc=st.none() | ports, metrics=st.none() | st.just(0) | ports),
    created_at=st.floats(0, 4e9),
    desired=st.sampled_from(Desired),
    origin=st.sampled_from(Origin),
    restarts=st.integers(0, 10**9),
    ever_ready=st.booleans(),
    intent_nonce=st.none() | words,
    handle=st.none() | handles,
    seed=st.none() | tables,
)
states = st.builds(
    State,
    records=st.lists(records, max_size=3, unique_by=lambda entry: entry.spec.name).map(tuple),
    deleted_seeds=st.dictionaries(words, tables, max_size=2),
)


@given(state=states)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_state_survives_the_file(tmp_path: Path, state: State) -> None:
    async def round_trip() -> tuple[State, list[str], str]:
        await save(tmp_path / "state", state)
        return await load(tmp_path / "state")

    loaded, codes, _ = asyncio.run(round_trip())
    assert codes == []
    assert loaded == _normal(state)


def _normal(state: State) -> State:
    """An empty nonce says no more than none."""
    return replace(
        state, records=tuple(replace(entry, intent_nonce=entry.intent_nonce or None) for entry in state.records)
    )


# -- crashes ------------------------------------------------------------------------------------------------------

SAVE_LOOP = """
import asyncio, itertools, os, random, signal, sys, time
from pathlib import Path
from tei_manager.adapters.store.toml_state import TomlStore
from tei_manager.domain.instance import Desired, InstanceSpec, Origin, Ports
from tei_manager.ports.store import Record, State

path = Path(sys.argv[1])

def version(number):
    spec = InstanceSpec(name="a", model_id="m", extra_args=("x" * 1000,) * 20)
    return State(records=(Record(spec=spec, ports=Ports(main=8080), created_at=1.0, desired=Desired.RUNNING,
                                 origin=Origin.API, restarts=number),))

async def save_on(pipe, first):
    store = TomlStore(path)
    for number in itertools.count(first):
        await store.save(version(number))
        os.write(pipe, b"%d\\n" % number)

async def load():
    store = TomlStore(path)
    loaded = await store.load()
    await store.close()
    return loaded

committed = 0
for _ in range(30):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(save_on(into, committed + 1))
    os.close(into)
    os.read(out, 1 << 16)
    time.sleep(random.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = os.read(out, 1 << 16)
    os.close(out)
    at_least = int(told.split()[-1]) if told.split() else committed
    loaded = asyncio.run(load())
    assert loaded.warnings == (), loaded.warnings
    found = loaded.state.records[0].restarts
    assert found >= at_least, (found, at_least)
    assert loaded.state == version(found)
    committed = found
print(committed)
"""


def test_a_kill_in_a_save_always_leaves_a_whole_version(path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", SAVE_LOOP, path], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30


# -- the lock -----------------------------------------------------------------------------------------------------

HOLD = """
import sys
from tei_manager.adapters.store.lock import StateLock
StateLock(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(errors.StateError, match=f"process {holder.pid}\\b"):
            StateLock(folder).acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with StateLock(folder):
        assert (folder / "tei-manager.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_can_be_given_back_and_taken_again(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    first.acquire()
    first.acquire()
    with pytest.raises(errors.StateError, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with StateLock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.StateError, match="cannot be opened"):
        StateLock(tmp_path / "file").acquire()
