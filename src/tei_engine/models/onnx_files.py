"""Which ready-made ONNX graph of a model is used, by file names alone: the same for a folder and a hub listing."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection
from pathlib import Path

_PLAIN = ("model.onnx", "onnx/model.onnx")
_INT8 = ("onnx/model_quantized.onnx", "model_quantized.onnx", "onnx/model_int8.onnx")
_LAST_INT8 = ("onnx/model_uint8.onnx", "onnx/model_quint8_avx2.onnx")


def cpu_flags() -> frozenset[str]:
    """Those of `arm64 avx512_vnni avx512 avx2` that this processor has; published files are named after them."""
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return frozenset({"arm64"})
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset({"avx2"})  # no way to ask; every x86-64 machine of the last decade has it
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    names = {"avx512_vnni": "avx512_vnni", "avx512f": "avx512", "avx2": "avx2"}
    return frozenset(name for flag, name in names.items() if flag in flags)


def candidates(*, int8: bool, cpu: frozenset[str]) -> tuple[str, ...]:
    """File names in the order they are tried. `int8` puts files that were quantised beforehand first."""
    if not int8:
        return _PLAIN
    fitting = [
        f"onnx/model_qint8_{name}.onnx" for name in ("arm64", "avx512_vnni", "avx512", "avx2") if name in cpu
    ]
    return (*_INT8, *fitting, *_LAST_INT8, *_PLAIN)


def choose(names: Collection[str], *, int8: bool = False, cpu: frozenset[str] | None = None) -> str | None:
    """The graph to use of `names` (paths relative to the model's folder); None if there is none."""
    tried = candidates(int8=int8, cpu=cpu_flags() if cpu is None else cpu)
    return next((name for name in tried if name in names), None)


def pick(names: Collection[str], *, int8: bool, is_native: bool, cpu: frozenset[str] | None = None) -> str | None:
    """The graph to use of `names`; None = it is built from safetensors, or there is none.

    `is_native` says whether safetensors are there, of a model whose graph is built here. With `int8` only files
    that were quantised beforehand are better than that.
    """
    best = choose(names, int8=int8, cpu=cpu)
    return None if is_native and best in _PLAIN else best


def is_plain(graph: str) -> bool:
    """Whether `graph` is called like one that nobody quantised."""
    return graph in _PLAIN


def siblings(graph: str, names: Collection[str]) -> list[str]:
    """The files of `names` in which exporters put the weights of `graph`, beside it."""
    stem = graph.removesuffix(".onnx")
    known = {f"{graph}_data", f"{graph}.data", f"{stem}.onnx_data", f"{stem}.data"}
    return sorted(name for name in names if name in known or re.fullmatch(re.escape(graph) + r"_data_\d+", name))
