"""Slices and tails of logs, against a model that reads everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tei_manager.adapters import log_files
from tei_manager.ports.fleet import LogSlice


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.log"


def model(content: bytes, start: int | None, end: int | None, tail: int | None, most: int) -> LogSlice:
    """What a slice is, in the words of Python's own slicing."""
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    numbers = list(range(len(lines)))
    if tail is not None:
        start, end = (-tail, None) if tail > 0 else (0, 0)
    chosen = numbers[slice(start, end)]
    chosen = chosen[:most] if start is not None and tail is None else chosen[-most:]
    texts = tuple(lines[number].decode(errors="replace") for number in chosen)
    return LogSlice(texts, chosen[0] if chosen else -1, chosen[-1] + 1 if chosen else -1, len(lines))


numbers = st.none() | st.integers(-12, 12)
contents = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"a", b"\n", b"\xc3\xbc", b"\r", b"\xff", b"bcd"]), max_size=30).map(b"".join),
)


@given(content=contents, start=numbers, end=numbers, tail=numbers, chunk=st.integers(1, 9), most=st.integers(1, 9))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_slice_equals_the_model(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    start: Any,
    end: Any,
    tail: Any,
    chunk: int,
    most: int,
) -> None:
    path.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(log_files, "_CHUNK", chunk)
        patch.setattr(log_files, "MOST_LINES", most)
        found = log_files.read_slice(path, start=start, end=end, tail=tail)
    expected = model(content, start, end, tail, most)
    assert (found.lines, found.total) == (expected.lines, expected.total)
    if found.lines:
        assert (found.start, found.end) == (expected.start, expected.end)
    else:
        assert 0 <= found.start == found.end <= found.total


def test_no_file_has_no_lines(path: Path) -> None:
    assert log_files.read_slice(path) == LogSlice((), 0, 0, 0)
    assert log_files.tail(path) == ""
    assert log_files.size(path) == 0


def test_ranges(path: Path) -> None:
    path.write_text("".join(f"{n}\n" for n in range(10)))
    for kwargs, expected in (
        ({"start": 2, "end": 4}, (["2", "3"], 2, 4)),
        ({"start": -2}, (["8", "9"], 8, 10)),
        ({"end": -8}, (["0", "1"], 0, 2)),
        ({"start": -99, "end": 1}, (["0"], 0, 1)),
        ({"start": 8, "end": 99}, (["8", "9"], 8, 10)),
        ({"start": 5, "end": 5}, ([], 5, 5)),
        ({"start": 7, "end": 3}, ([], 7, 7)),
        ({"start": 99}, ([], 10, 10)),
        ({"tail": 1}, (["9"], 9, 10)),
        ({"tail": 0}, ([], 10, 10)),
    ):
        found = log_files.read_slice(path, **kwargs)
        assert (list(found.lines), found.start, found.end) == expected
        assert found.total == 10


def test_at_most_ten_thousand_lines(path: Path) -> None:
    path.write_text("".join(f"{n}\n" for n in range(25_000)))
    whole = log_files.read_slice(path)
    assert (whole.start, whole.end, whole.total) == (15_000, 25_000, 25_000)
    assert whole.lines[-1] == "24999"
    part = log_files.read_slice(path, start=3)
    assert (part.start, part.end, part.lines[0]) == (3, 10_003, "3")
    assert log_files.read_slice(path, tail=20_000).start == 15_000


def test_a_large_file_of_long_lines_stays_bounded(path: Path) -> None:
    line = b"x" * (3 * 1024 * 1024) + b"\n"
    with path.open("wb") as stream:
        for number in range(20):
            stream.write(b"%02d" % number + line)
    found = log_files.read_slice(path, start=17)
    assert [text[:2] for text in found.lines] == ["17", "18", "19"]
    assert {len(text) for text in found.lines} == {log_files.MOST_LINE_BYTES}
    assert found.total == 20


def test_a_slice_ends_at_its_most_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 10)
    path.write_text("abcd\n" * 5)
    found = log_files.read_slice(path, start=1)
    assert (found.lines, found.start, found.end, found.total) == (("abcd", "abcd"), 1, 3, 5)


def test_tail(path: Path) -> None:
    path.write_text("old\nnew\n")
    assert log_files.size(path) == 8
    assert log_files.tail(path) == "old\nnew\n"
    assert log_files.tail(path, since_offset=4) == "new\n"
    assert log_files.tail(path, since_offset=8) == ""
    assert log_files.tail(path, max_bytes=3) == "ew\n"
    assert log_files.tail(path, max_bytes=0) == ""
    # cut to nothing and written anew since
    assert log_files.tail(path, since_offset=9) == "old\nnew\n"


def test_a_tail_begins_with_a_whole_character(path: Path) -> None:
    path.write_text("üü")
    assert log_files.tail(path, max_bytes=3) == "ü"
    path.write_bytes(b"\xff\xffa")
    assert log_files.tail(path) == "��a"


@given(content=st.text(max_size=30), most=st.integers(0, 40), since=st.integers(0, 40))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tail_is_an_end_of_the_text(path: Path, content: str, most: int, since: int) -> None:
    content = content.encode(errors="replace").decode()
    path.write_bytes(content.encode())
    found = log_files.tail(path, max_bytes=most, since_offset=0)
    assert content.endswith(found)
    assert min(most, len(content.encode())) - 3 <= len(found.encode()) <= most
    assert len(log_files.tail(path, max_bytes=most, since_offset=since).encode(errors="replace")) <= most * 3
