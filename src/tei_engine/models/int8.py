"""Making the int8 graph of a model: once measured and built, then from the cache."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tei_engine import __version__
from tei_engine.errors import StartError
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.build import TYPES
from tei_engine.graph.emit import Emitter, Graph
from tei_engine.graph.int8 import Int8Emitter, Observer, levels_of, quantise
from tei_engine.graph.session import Session, runtime_version
from tei_engine.graph.weights import Weights, read_header
from tei_engine.models.configuration import NativeConfiguration
from tei_engine.models.int8_cache import Cache, Entry, Likeness
from tei_engine.models.onnx_files import cpu_flags
from tei_engine.models.probes import encode_probes, longest_probe
from tei_engine.models.scores import normalised, probabilities
from tei_engine.tokenization.tokenizer import Encoded, Tokenizer

_log = logging.getLogger(__name__)

FORCE = "TEI_ENGINE_QUANTIZE_FORCE"
"""This variable at 1 serves an int8 graph that is further from the float32 graph than is allowed."""
_RECIPE = 1
"""Raised with every change of what is computed, probes included, that `__version__` does not show."""
_COSINE_FLOOR = Likeness(min=0.97, mean=0.99)
_PROBABILITY_FLOOR = Likeness(min=0.90, mean=0.98)
_SAMPLE = 4096

Emit = Callable[[Emitter], Graph]
"""Writes a model's graph with the emitter it is given."""


def build_int8(
    folder: Path, configuration: NativeConfiguration, weights: Weights, emit: Emit, *, cache: Path | None
) -> tuple[Graph, Likeness]:
    """The int8 graph and how near it is to the float32 graph.

    Raises StartError if it is not near enough, unless `FORCE` is set, or if the weights are damaged.
    """
    began = time.perf_counter()
    store = None if cache is None else Cache(cache / "int8")
    key = _key(configuration, weights)
    entry = None if store is None else store.read(key)
    origin = "from"
    if entry is None:
        entry, origin = _make(folder, configuration, weights, emit), "kept in memory"
        if store is not None and store.write(key, entry):
            entry, origin = store.read(key) or entry, "stored in"  # mapped, so that what was computed can go
    if store is not None and origin != "kept in memory":
        origin += f" {store.path(key)}"
    is_labelled = configuration.classification is not None
    what, floor = ("agreement of probabilities", _PROBABILITY_FLOOR) if is_labelled else ("cosine", _COSINE_FLOOR)
    seconds, likeness = time.perf_counter() - began, entry.likeness
    measured = f"{what} min {likeness.min:.4f} mean {likeness.mean:.4f}"
    _log.info("int8 against float32: %s, %.1f s, %s", measured, seconds, origin)
    _judge(likeness, floor, measured)
    return emit(Int8Emitter(weights, entry.arrays)), likeness


def _judge(likeness: Likeness, floor: Likeness, measured: str) -> None:
    if likeness.mean >= floor.mean and likeness.min >= floor.min:  # false for NaN
        return
    message = f"int8 changes this model too much: {measured}; needed are at least {floor.min} and {floor.mean}"
    if os.environ.get(FORCE) != "1":
        raise StartError(f"{message}; {FORCE}=1 serves it all the same")
    _log.warning("%s; served because %s=1", message, FORCE)


def _make(folder: Path, configuration: NativeConfiguration, weights: Weights, emit: Emit) -> Entry:
    """Run the float32 graph over the probes, quantise by what was seen, run the int8 graph over them."""
    probes = encode_probes(Tokenizer(folder), configuration)
    observer = Observer(weights)
    exact, observed = _run(emit(observer), probes, [peak for peaks in observer.peaks.values() for peak in peaks])
    if not all(np.isfinite(row).all() for row in exact):
        raise StartError("the model's output is not a number: its weights are damaged")
    peaks = {
        name: np.max([observed[peak] for peak in several], axis=0) for name, several in observer.peaks.items()
    }
    arrays = quantise(weights, observer.maps, peaks, levels_of(cpu_flags()))
    rough, _ = _run(emit(Int8Emitter(weights, arrays)), probes, [])
    if configuration.classification is None:
        return Entry(arrays, _likeness(_cosines(exact, rough)))
    return Entry(arrays, _likeness(1 - np.abs(probabilities(exact) - probabilities(rough)).max(axis=1)))


def _run(
    graph: Graph, probes: Sequence[Encoded], peaks: Sequence[str]
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """The graph's first output [probes, width], and the maximum over all probes of each of `peaks`."""
    session = Session(graph, threads=0)
    rows: list[FloatArray] = []
    highest: dict[str, FloatArray] = {}
    wanted = [session.outputs[0], *dict.fromkeys(peaks)]
    for probe in probes:
        ids = np.array([probe.ids], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if TYPES in graph.inputs:
            inputs[TYPES] = np.array([probe.types or [0] * len(probe.ids)], dtype=np.int64)
        first, *seen = session.run(inputs, wanted)
        rows.append(first[0])
        for name, values in zip(wanted[1:], seen, strict=True):
            highest[name] = np.maximum(highest.get(name, values), values)
    return np.stack(rows), highest


def _cosines(exact: FloatArray, rough: FloatArray) -> FloatArray:
    """[n]: of each pair of rows; 1 where both are zero, as sparse vectors can be."""
    cosines: FloatArray = np.einsum("ij,ij->i", normalised(exact), normalised(rough))
    cosines[~exact.any(axis=1) & ~rough.any(axis=1)] = 1.0
    return cosines


def _likeness(values: FloatArray) -> Likeness:
    return Likeness(float(values.min()), float(values.mean()))


def _key(configuration: NativeConfiguration, weights: Weights) -> str:
    """A name for everything that the int8 weights and their likeness depend on."""
    digest = blake2b(digest_size=20)
    parts = (
        __version__,
        runtime_version(),
        _RECIPE,
        sorted(cpu_flags()),
        configuration.family,
        configuration.sizes,
        configuration.kind,
        configuration.classification,
        configuration.pooling,
        configuration.is_tied,
        longest_probe(configuration),
    )
    digest.update(repr(parts).encode())
    _add_weights(digest, weights)
    for path in configuration.dense:
        file = path / "model.safetensors"
        if file.is_file():  # else the graph's builder says so
            _add_weights(digest, Weights({tensor.name: tensor for tensor in read_header(file)}))
    return digest.hexdigest()


def _add_weights(digest: blake2b, weights: Weights) -> None:
    """The checkpoint's tensors: where each lies, its file's size and time, and 4 KiB of its start, middle and end.

    All bytes of a large checkpoint would take longer to read than everything else that a start does. Another
    training changes every tensor all over; a file that was changed in place has another time.
    """
    for file in sorted({tensor.file for tensor in weights.tensors.values()}):
        stat = file.stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            for name, tensor in sorted(weights.tensors.items()):
                if tensor.file != file:
                    continue
                digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.offset}".encode())
                last = max(0, tensor.nbytes - _SAMPLE)
                for start in sorted({0, last // 2, last}):
                    stream.seek(tensor.offset + start)
                    digest.update(stream.read(min(_SAMPLE, tensor.nbytes)))
