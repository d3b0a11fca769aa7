"""Int8 weights between two starts: found again, never believed when damaged, never in the way."""

import logging
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tei_engine.errors import StartError
from tei_engine.graph.heads import Pooling
from tei_engine.graph.weights import read_header
from tei_engine.models import int8_cache
from tei_engine.models.configuration import read_configuration
from tei_engine.models.int8_cache import Cache, Entry, Likeness
from tei_engine.models.model import Batch, Model, Threads
from tei_engine.models.native import GraphChoice

PROBE = Batch.of([[2, 17, 40, 3], [2, 9, 3]])


@pytest.fixture
def build(caplog):
    """Build a folder's int8 model with a cache: its vectors, and the lines that were logged."""

    def run(folder, cache, **reading):
        caplog.clear()
        with caplog.at_level(logging.INFO, "tei_engine"):
            configuration = read_configuration(folder, **reading)
            model = Model(folder, configuration, Threads(1, 1), GraphChoice(int8=True, cache=cache))
        return model.run(PROBE, model.outputs[:1])[0], caplog.text

    return run


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny model that a test may change."""
    return Path(shutil.copytree(tiny_folder("bert-mean"), tmp_path / "model"))


def entries(cache):
    return sorted(cache.glob("int8/*"))


def test_the_second_start_uses_what_the_first_one_built(build, folder, tmp_path):
    cache = tmp_path / "deep" / "cache"
    built, first = build(folder, cache)
    [entry] = entries(cache)
    before = entry.read_bytes()
    found, second = build(folder, cache)
    assert "stored in" in first
    assert f"from {entry}" in second
    assert entries(cache) == [entry]
    assert entry.read_bytes() == before
    assert np.array_equal(found, built)


def test_without_a_cache_nothing_is_stored(build, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = sorted(tmp_path.rglob("*"))
    built, text = build(folder, None)
    assert np.isfinite(built).all()
    assert "kept in memory" in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), id="one bit of the data"),
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut in half"),
        pytest.param(lambda raw: raw[:5], id="cut to nothing much"),
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: b"x" * len(raw), id="something else"),
        pytest.param(lambda raw: raw.replace(b'"crc32"', b'"crc31"'), id="no checksum"),
        pytest.param(lambda raw: raw.replace(b'"__metadata__"', b'"__metadatb__"'), id="no metadata"),
        pytest.param(lambda raw: raw.replace(b'"F32"', b'"F64"', 1), id="another type"),
    ],
)
def test_a_damaged_entry_is_built_again(build, folder, tmp_path, damage):
    built, _ = build(folder, tmp_path)
    [entry] = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    again, text = build(folder, tmp_path)
    assert f"{entry} cannot be used" in text
    assert "stored in" in text
    assert entry.read_bytes() == whole
    assert np.array_equal(again, built)


def test_where_nothing_can_be_written_it_is_kept_in_memory(build, folder, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    built, text = build(folder, tmp_path / "cache")
    expected, _ = build(folder, None)
    assert "could not be stored" in text
    assert "kept in memory" in text
    assert np.array_equal(built, expected)


def test_other_weights_of_the_same_size_and_time_are_another_entry(build, folder, tmp_path):
    build(folder, tmp_path)
    file = folder / "model.safetensors"
    stat = file.stat()
    raw = bytearray(file.read_bytes())
    tensor = next(t for t in read_header(file) if t.name.endswith("layer.1.output.dense.weight"))
    values = np.frombuffer(raw, np.float32, tensor.nbytes // 4, tensor.offset)
    values *= np.float32(0.5)
    file.write_bytes(raw)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    _, text = build(folder, tmp_path)
    assert "stored in" in text
    assert len(entries(tmp_path)) == 2


def test_a_file_that_was_touched_is_another_entry(build, folder, tmp_path):
    build(folder, tmp_path)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    build(folder, tmp_path)
    assert len(entries(tmp_path)) == 2


def test_another_pooling_or_dense_module_is_another_entry(build, folder, tiny_folder, tmp_path):
    build(folder, tmp_path)
    build(folder, tmp_path, pooling=Pooling.CLS)
    assert len(entries(tmp_path)) == 2
    dense = Path(shutil.copytree(tiny_folder("bert-dense"), tmp_path / "dense"))
    build(dense, tmp_path)
    os.utime(next(dense.glob("*Dense*/model.safetensors")), ns=(1, 1))
    build(dense, tmp_path)
    assert len(entries(tmp_path)) == 4


def test_starts_at_the_same_time_do_not_disturb_each_other(build, folder, tmp_path):
    answers, errors = [], []

    def start():
        try:
            configuration = read_configuration(folder)
            model = Model(folder, configuration, Threads(1, 1), GraphChoice(int8=True, cache=tmp_path / "cache"))
            answers.append(model.run(PROBE, model.outputs[:1])[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(answers) == 4
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert [entry.suffix for entry in entries(tmp_path / "cache")] == [".safetensors"]


def test_weights_that_are_not_numbers_end_the_start_and_leave_no_entry(build, folder, tmp_path):
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    tensor = next(t for t in read_header(file) if t.name.endswith("layer.0.output.dense.weight"))
    np.frombuffer(raw, np.float32, 1, tensor.offset)[0] = np.nan
    file.write_bytes(raw)
    with pytest.raises(StartError, match="its weights are damaged"):
        build(folder, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def entry_of(size):
    arrays = {"a.int8": np.full((size // 8, 8), 3, np.int8), "a.scale": np.arange(8, dtype=np.float32)}
    return Entry(arrays, Likeness(0.98, 0.995))


def test_an_entry_comes_back_as_it_was_and_is_mapped(tmp_path):
    cache = Cache(tmp_path)
    written = entry_of(800)
    assert cache.write("key", written)
    read = cache.read("key")
    assert read is not None
    assert read.likeness == written.likeness
    assert set(read.arrays) == set(written.arrays)
    for name, values in written.arrays.items():
        assert read.arrays[name].dtype == values.dtype
        assert np.array_equal(read.arrays[name], values)
        assert not read.arrays[name].flags.owndata
        assert read.arrays[name].flags.aligned
    assert cache.read("another key") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_cache, "BOUND", 5000)
    cache = Cache(tmp_path)
    for second, key in enumerate(["old", "older", "oldest"]):
        cache.write(key, entry_of(1200))
        os.utime(cache.path(key), (100 - second, 100 - second))
    assert cache.read("oldest") is not None  # a use
    cache.write("new", entry_of(1200))
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "oldest", "old"}


def test_an_entry_above_the_bound_stays_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_cache, "BOUND", 500)
    cache = Cache(tmp_path)
    cache.write("small", entry_of(80))
    cache.write("large", entry_of(1200))
    assert [path.stem for path in tmp_path.iterdir()] == ["large"]


def test_files_that_were_never_finished_are_removed_after_an_hour(tmp_path):
    cache = Cache(tmp_path)
    for name, age in (("dead.tmp", 4000), ("alive.tmp", 10)):
        (tmp_path / name).write_bytes(b"half")
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    cache.write("key", entry_of(80))
    assert {path.name for path in tmp_path.iterdir()} == {"alive.tmp", "key.safetensors"}
