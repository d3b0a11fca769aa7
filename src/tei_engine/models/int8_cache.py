"""Where int8 weights lie between two starts: one safetensors file per model, mapped, never trusted unchecked."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tei_engine.errors import StartError
from tei_engine.graph.arrays import Array
from tei_engine.graph.weights import Tensor, read_header

_log = logging.getLogger(__name__)

BOUND = 8 << 30
"""Bytes of all entries together; beyond it those go first whose last use is longest ago."""
_ABANDONED = 3600.0  # seconds after which a file that was never finished belongs to nobody
_DTYPES: Mapping[str, np.dtype[Any]] = {"I8": np.dtype("i1"), "F32": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near the answers of the int8 graph are to those of the float32 graph, over all probes.

    Cosine of vectors; of classifiers and rerankers 1 − the largest change of a probability.
    """

    min: float
    mean: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one int8 graph."""

    arrays: Mapping[str, Array]
    likeness: Likeness


class Cache:
    """A folder of entries. Several processes may share it: files appear whole and are never written again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        """Where the entry of `key` lies, whether it is there or not."""
        return self._folder / f"{key}.safetensors"

    def read(self, key: str) -> Entry | None:
        """The entry of `key`, its arrays mapped; None if there is none or its bytes are not those written."""
        path = self.path(key)
        try:
            entry = _read(path)
        except FileNotFoundError:
            return None
        except (StartError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be used (%s): it is built again", path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of the last use
        return entry

    def write(self, key: str, entry: Entry) -> bool:
        """Store `entry` under `key`; False, and a line that says why, where that cannot be."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self.path(key), entry)
            self._prune(self.path(key))
        except OSError as error:
            _log.info("int8 weights are kept in memory, they could not be stored: %s", error)
            return False
        return True

    def _prune(self, kept: Path) -> None:
        """Keep the folder below `BOUND`. A process that has a removed file mapped goes on using it."""
        for path in self._folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        entries = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                entries.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in entries)
        for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= BOUND:
                break
            if path != kept:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= stat.st_size


def _write(path: Path, entry: Entry) -> None:
    # float32 first, so that every array is aligned
    names = sorted(entry.arrays, key=lambda name: (-entry.arrays[name].itemsize, name))
    header: dict[str, object] = {}
    place = checksum = 0
    for name in names:
        values = entry.arrays[name]
        span = [place, place + values.nbytes]
        header[name] = {"dtype": _NAMES[values.dtype], "shape": values.shape, "data_offsets": span}
        checksum = zlib.crc32(_bytes(values), checksum)
        place = span[1]
    likeness = {"min": repr(entry.likeness.min), "mean": repr(entry.likeness.mean)}
    header["__metadata__"] = {"crc32": str(checksum), **likeness}
    raw = orjson.dumps(header)
    raw += b" " * (-(len(raw) + 8) % 64)  # so that the arrays begin aligned; 8 bytes stand before the header
    file, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(len(raw).to_bytes(8, "little"))
            stream.write(raw)
            for name in names:
                stream.write(_bytes(entry.arrays[name]))
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _read(path: Path) -> Entry:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        tensors = read_header(path)
        metadata = orjson.loads(stream.read(length))["__metadata__"]
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    if str(zlib.crc32(mapped[8 + length :].data)) != metadata["crc32"]:
        raise ValueError("its checksum is wrong")
    arrays = {tensor.name: _array(mapped, tensor) for tensor in tensors}
    return Entry(arrays, Likeness(float(metadata["min"]), float(metadata["mean"])))


def _array(file: Array, tensor: Tensor) -> Array:
    """The part of a mapped file that is `tensor`, not copied."""
    part = file[tensor.offset : tensor.offset + tensor.nbytes]
    values: Array = part.view(_DTYPES[tensor.dtype])
    return values.reshape(tensor.shape)


def _bytes(values: Array) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
