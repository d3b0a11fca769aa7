"""Progress, locks and full disks."""

import errno
import fcntl
import hashlib
import logging
import threading

import pytest

from tei_engine.models import hub_transfer
from tei_engine.models.hub_cache import DiskError, ModelCache
from tei_engine.models.hub_client import HubClient, HubError, Listing, RemoteFile
from tei_engine.models.hub_progress import Progress, in_words
from tei_engine.models.hub_transfer import Transfer
from tei_manager.engines.log_reading import Fact, LogFact, read_line

COMMIT = "ab" * 20
DATA = b"0123456789"
ETAG = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_868_376, "90.9 MB"), (1_340_000_000, "1.3 GB")],
)
def test_bytes_in_words(size, words):
    assert in_words(size) == words


class Clock:
    """Ten seconds pass whenever somebody looks."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 10
        return self.now


def test_progress_is_told_in_lines_that_the_manager_reads(caplog):
    caplog.set_level("INFO", logger="tei_engine")
    told = threading.Event()

    class Watched(Progress):
        def reach(self, size):
            super().reach(size)
            assert told.wait(10)

    class Listening(logging.Handler):
        def emit(self, record):
            if record.getMessage().endswith("46.0 MB of 91.0 MB, 4.5 MB/s"):
                told.set()

    progress = Watched(interval=0.01, clock=Clock())
    progress.total = 91_000_000
    listening = Listening()
    logging.getLogger("tei_engine").addHandler(listening)
    progress.begin("config.json", 1_000_000)
    progress.begin("model.safetensors", 0)
    with progress.telling():
        progress.reach(45_000_000)
    logging.getLogger("tei_engine").removeHandler(listening)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "Downloading `config.json`: 1.0 MB of 91.0 MB"
    assert lines[1] == "Downloading `model.safetensors`: 1.0 MB of 91.0 MB"
    facts = [read_line(f'{{"level": "INFO", "message": "{line}"}}') for line in lines]
    assert set(facts[1:]) == {LogFact(Fact.DOWNLOADING, "model.safetensors")}


class FakeHub(HubClient):
    """Sends DATA in pieces of one byte; its locks are real."""

    def chunks(self, name, commit, *, start=0):
        for offset in range(start, len(DATA)):
            yield offset, DATA[offset : offset + 1]


@pytest.fixture
def place(tmp_path):
    return ModelCache(tmp_path, "acme/tiny")


@pytest.fixture
def transfer(place):
    listing = Listing(COMMIT, {"w": RemoteFile("w", len(DATA), ETAG)})
    return Transfer(FakeHub("acme/tiny"), place, listing, Progress())


def test_a_file_is_brought(transfer, place):
    transfer.bring(["w"])
    assert (transfer.folder / "w").read_bytes() == DATA
    assert (transfer.folder / "w").readlink().parts[-2:] == ("blobs", ETAG)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_is_full_is_given_its_room_back(transfer, place, monkeypatch, number):
    write, written = hub_transfer._write, []

    def until_full(out, data):
        if len(written) == 4:
            raise OSError(number, "of the disk")
        written.append(data)
        return write(out, data)

    monkeypatch.setattr(hub_transfer, "_write", until_full)
    with pytest.raises(DiskError, match=f"hub cache {place.cache}: of the disk"):
        transfer.bring(["w"])
    is_full = number != errno.EIO
    assert place.partial(ETAG).exists() is not is_full, "a beginning is worth keeping where there is room"
    monkeypatch.undo()
    transfer.bring(["w"])
    assert (transfer.folder / "w").read_bytes() == DATA


def test_what_the_disk_cannot_hold_is_not_begun(transfer, place, monkeypatch):
    place.partial(ETAG).parent.mkdir(parents=True)
    place.partial(ETAG).write_bytes(DATA[:4])
    monkeypatch.setattr(ModelCache, "free_bytes", lambda _: 5)
    with pytest.raises(DiskError, match="6 B are needed, 5 B are free"):
        transfer.bring(["w"])
    monkeypatch.setattr(ModelCache, "free_bytes", lambda _: 6)
    transfer.bring(["w"])


def test_a_file_system_without_links_gets_the_file_itself(transfer, place, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    transfer.bring(["w"])
    assert not (transfer.folder / "w").is_symlink()
    assert (transfer.folder / "w").read_bytes() == DATA
    assert not place.blob(ETAG).exists()


def test_a_lock_is_waited_for_as_long_as_something_grows(transfer, place, monkeypatch):
    monkeypatch.setattr(hub_transfer, "_LOCK_SECONDS", 0.02)
    monkeypatch.setattr(hub_transfer, "_STALLED_SECONDS", 0.1)
    path = place.lock_file(ETAG)
    with path.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(HubError, match=f"another process holds {path} and brings nothing"):
            transfer.bring(["w"])

        def finish():
            place.blob(ETAG).write_bytes(DATA)
            fcntl.flock(holder, fcntl.LOCK_UN)

        place.blob(ETAG).parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(hub_transfer, "_STALLED_SECONDS", 60)
        timer = threading.Timer(0.1, finish)
        timer.start()
        transfer.bring(["w"])
        timer.join()
    assert (transfer.folder / "w").read_bytes() == DATA
