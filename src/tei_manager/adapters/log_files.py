"""Reading the logs of instances: always a bounded piece, however large the file.

A line ends with a newline; text after the last one is a line, too. Bytes that are no UTF-8 are replaced.
The module as a whole is what `control` calls its log files. All functions block on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tei_manager.ports.fleet import LogSlice

MOST_LINES = 10_000
MOST_LINE_BYTES = 64 * 1024
MOST_BYTES = 16 * 1024 * 1024
_CHUNK = 1 << 20


def size(path: str | Path) -> int:
    """Bytes in the file now, 0 if there is none."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a text or a path
    except OSError:
        return 0


def tail(path: str | Path, *, max_bytes: int = 16384, since_offset: int = 0) -> str:
    """The end of a file, at most `max_bytes`, nothing before `since_offset`; "" if there is no file.

    A file that is shorter than `since_offset` was cut meanwhile: then all of it counts.
    """
    try:
        with Path(path).open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            begin = since_offset if since_offset <= end else 0
            start = max(begin, end - max_bytes)
            stream.seek(start)
            content = stream.read(end - start)
    except OSError:
        return ""
    if start > begin:
        # the first bytes may be the rest of a character
        content = content.lstrip(bytes(range(0x80, 0xC0)))
    return content.decode(errors="replace")


def read_slice(
    path: str | Path, *, start: int | None = None, end: int | None = None, tail: int | None = None
) -> LogSlice:
    """Lines `start` to `end` (half-open), or the last `tail`, or, with no range at all, the last 10 000.

    Negative numbers count from the end, numbers beyond it are clamped, and at most 10 000 lines come back: of a
    range the first ones, of a tail the last ones. A line keeps its first 64 KiB, and a slice ends early at 16 MiB.
    No file is a file without lines.
    """
    try:
        with Path(path).open("rb") as stream:
            marks, total, last = _survey(stream)
            first, beyond = _range(total, start, end, tail)
            lines = tuple(_read(stream, marks, last, first, beyond))
    except OSError:
        return LogSlice((), 0, 0, 0)
    return LogSlice(lines, first, first + len(lines), total)


def _range(total: int, start: int | None, end: int | None, tail: int | None) -> tuple[int, int]:
    if tail is not None:
        return max(0, total - min(max(tail, 0), MOST_LINES)), total
    if start is None and end is None:
        return max(0, total - MOST_LINES), total
    first = _clamped(0 if start is None else start, total)
    beyond = _clamped(total if end is None else end, total)
    if start is None and beyond - first > MOST_LINES:
        first = beyond - MOST_LINES
    return first, min(max(first, beyond), first + MOST_LINES)


def _clamped(number: int, total: int) -> int:
    return max(0, number + total) if number < 0 else min(number, total)


def _survey(stream: BinaryIO) -> tuple[list[int], int, int]:
    """Newlines before each chunk, the number of lines, and the size of the file as it was then."""
    marks, newlines, end, ends_open = [], 0, 0, False
    while chunk := stream.read(_CHUNK):
        marks.append(newlines)
        newlines += chunk.count(b"\n")
        end += len(chunk)
        ends_open = not chunk.endswith(b"\n")
    return marks, newlines + ends_open, end


def _read(stream: BinaryIO, marks: list[int], size: int, first: int, beyond: int) -> Iterator[str]:
    if first >= beyond:
        return
    # the last chunk that begins before the line does
    begin = max(i for i, newlines in enumerate(marks) if newlines <= first and (i == 0 or newlines < first))
    stream.seek(begin * _CHUNK)
    left, given = size - begin * _CHUNK, 0
    for number in range(marks[begin], beyond):
        line = _line(stream, left)
        left -= line[1]
        if line[1] == 0:
            return
        if number < first:
            continue
        given += len(line[0])
        if given > MOST_BYTES:
            return
        yield line[0].decode(errors="replace")


def _line(stream: BinaryIO, left: int) -> tuple[bytes, int]:
    """The next line's first bytes without its end, and how many bytes it has in all."""
    content = stream.readline(min(MOST_LINE_BYTES, left))
    length = len(content)
    while not content.endswith(b"\n") and length < left:
        rest = stream.readline(min(_CHUNK, left - length))
        length += len(rest)
        if not rest or rest.endswith(b"\n"):
            break
    return content.removesuffix(b"\n"), length
