"""The arithmetic of an encoder, and the machine's own limit for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime

_ROWS = (256, 512, 1024)
_SHARE = 1 / 6  # of the time, for each way of multiplying
SETTLE_SECS = 0.06  # ONNX Runtime's threads spin for up to 50 ms after a run


def encoder_flops(lengths: Sequence[int], *, layers: int, hidden: int, feed_forward: int, is_gated: bool) -> float:
    """Floating-point operations of one pass over texts of these lengths, real tokens only.

    Two for each multiply-add of the matrix products: layers · (2 · tokens · (4 · hidden² + g · hidden ·
    feed_forward) + 4 · tokens² · hidden), where g is 3 for gated feed-forwards, else 2. Embeddings, norms,
    softmax, activations and heads are left out, and a windowed attention counts as a full one.
    """
    matrices = 4 * hidden**2 + (3 if is_gated else 2) * hidden * feed_forward
    return float(sum(layers * (2 * n * matrices + 4 * n * n * hidden) for n in lengths))


class Gemm:
    """f32 products of token rows with a weight [hidden, feed_forward], in several ways.

    One-thread sessions side by side, one session of all threads, and NumPy's BLAS, which takes its number of
    threads from the environment.
    """

    def __init__(self, hidden: int, feed_forward: int, threads: int) -> None:
        self._threads = threads
        weight = np.random.default_rng(1).standard_normal((hidden, feed_forward), dtype=np.float32)
        model = _matmul(weight)
        narrow, wide = _session(model, 1), _session(model, threads)
        inputs = {rows: np.ones((rows, hidden), dtype=np.float32) for rows in _ROWS}
        self._flops = {rows: 2.0 * rows * hidden * feed_forward for rows in _ROWS}
        small, big = inputs[_ROWS[0]], inputs[_ROWS[-1]]
        out = np.empty((_ROWS[-1], feed_forward), dtype=np.float32)
        self._ways: list[tuple[int, int, Callable[[], object]]] = [
            (_ROWS[0], threads, lambda: narrow.run(None, {"x": small})),
            (_ROWS[1], threads, lambda: narrow.run(None, {"x": inputs[_ROWS[1]]})),
            (_ROWS[-1], 1, lambda: np.matmul(big, weight, out=out)),
            (_ROWS[0], 1, lambda: wide.run(None, {"x": small})),
            (_ROWS[-1], 1, lambda: wide.run(None, {"x": big})),
        ]

    def peak(self, secs: float) -> float:
        """FLOP/s of the fastest way."""
        rates = []
        for rows, callers, multiply in self._ways:
            time.sleep(SETTLE_SECS)
            rates.append(side_by_side([_repeated(multiply)] * callers, secs * _SHARE) * self._flops[rows])
        return max(rates)


def side_by_side(works: Sequence[Callable[[float], tuple[float, float]]], secs: float) -> float:
    """Sum of the rates of works on a thread each. A work gets a time of `perf_counter` after which it stops, and
    returns how much it did, and in how many seconds: who waits for the last one does not count."""
    rates = [0.0] * len(works)
    until = time.perf_counter() + secs

    def run(place: int) -> None:
        done, taken = works[place](until)
        rates[place] = done / taken

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(rates):
        raise RuntimeError("a thread ended without having done anything")
    return sum(rates)


def _repeated(multiply: Callable[[], object]) -> Callable[[float], tuple[float, float]]:
    def work(until: float) -> tuple[float, float]:
        multiply()
        began, count = time.perf_counter(), 0
        while (now := time.perf_counter()) < until or not count:
            multiply()
            count += 1
        return count, now - began

    return work


def _matmul(weight: np.ndarray) -> bytes:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [info("x", kind, ["rows", weight.shape[0]])],
        [info("y", kind, ["rows", weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    content: bytes = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
