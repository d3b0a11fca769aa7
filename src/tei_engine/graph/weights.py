"""Reading safetensors: where each tensor lies in which file. Nothing is loaded here but the headers."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tei_engine.errors import StartError

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SIZES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_WIDENABLE = ("F16", "BF16", "F64")
_HEADER_LIMIT = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor: `offset` and `nbytes` are bytes in `file`, whose symlinks are resolved."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def is_mappable(self) -> bool:
        """Whether the bytes can be used where they lie (float32, aligned)."""
        return self.dtype == "F32" and self.offset % 4 == 0

    def read_float32(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The values as float32 in their own memory; f16, bf16 and f64 are converted.

        Raises StartError for other types.
        """
        raw = np.fromfile(self.file, dtype=np.uint8, count=self.nbytes, offset=self.offset)
        if self.dtype == "BF16":  # the upper half of a float32
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif self.dtype in {"F32", "F16", "F64"}:
            values = raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[self.dtype]).astype(np.float32)
        else:
            raise StartError(f"tensor {self.name} has unsupported type {self.dtype}")
        return values.reshape(self.shape)


@dataclass(slots=True)
class Weights:
    """The tensors of one checkpoint under canonical names, and which of the asked ones were absent."""

    tensors: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor called `name`; None, and noted, when absent. Raises StartError when its shape differs."""
        tensor = self.tensors.get(name)
        if tensor is None:
            self.missing.append(name)
            return None
        if tensor.shape != shape:
            raise StartError(f"tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype != "F32" and tensor.dtype not in _WIDENABLE:
            raise StartError(f"tensor {name} has unsupported type {tensor.dtype}")
        return tensor

    def check(self) -> None:
        """Raise StartError naming up to five tensors that were asked for and not found."""
        if self.missing:
            more = f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else ""
            raise StartError(f"the model's weights lack {', '.join(self.missing[:5])}{more}")


def canonical(name: str, prefixes: tuple[str, ...]) -> str:
    """`name` without its architecture's prefix and with today's names for norm parameters."""
    for prefix in prefixes:
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    if name.endswith("LayerNorm.gamma"):
        return name[: -len("gamma")] + "weight"
    if name.endswith("LayerNorm.beta"):
        return name[: -len("beta")] + "bias"
    return name


def read_weights(folder: Path, prefixes: tuple[str, ...] = ()) -> Weights:
    """The tensors of `folder`: model.safetensors, or the shards of model.safetensors.index.json.

    Raises StartError naming the file or tensor that is missing, truncated or malformed.
    """
    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        for tensor in read_header(path):
            tensors.setdefault(canonical(tensor.name, prefixes), tensor)
    return Weights(tensors)


def _files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise StartError(f"no model.safetensors and no model.safetensors.index.json in {folder}")
    try:
        names = sorted(set(orjson.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"could not read {index}", str(error)) from error
    for name in names:
        # an index may not reach outside its own folder
        if not isinstance(name, str) or Path(name).name != name:
            raise StartError(f"{index} names a file outside its folder: {name}")
        if not (folder / name).is_file():
            raise StartError(f"{index.name} names {name}, which is not in {folder}")
    return [folder / name for name in names]


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file, each checked to lie inside it."""
    file = path.resolve()
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise StartError(f"{path} is not a safetensors file: its header does not fit ({size} bytes)")
        try:
            header = orjson.loads(stream.read(length))
            entries = [(name, value) for name, value in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError) as error:
            raise StartError(f"{path} is not a safetensors file: its header is not JSON", str(error)) from error
    return [_tensor(path, file, name, value, 8 + length, size) for name, value in entries]


def _tensor(path: Path, file: Path, name: str, value: Any, base: int, size: int) -> Tensor:
    try:
        dtype, shape = str(value["dtype"]), tuple(int(n) for n in value["shape"])
        begin, end = (int(n) for n in value["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise StartError(f"{path}: tensor {name} is malformed", repr(error)) from error
    if dtype not in _SIZES:
        raise StartError(f"{path}: tensor {name} has unknown type {dtype}")
    nbytes = math.prod(shape) * _SIZES[dtype]
    if begin < 0 or any(n < 0 for n in shape) or end - begin != nbytes:
        raise StartError(f"{path}: tensor {name} has {end - begin} bytes, its shape needs {nbytes}")
    if base + end > size:
        raise StartError(f"{path} is truncated: tensor {name} ends at byte {base + end} of {size}")
    return Tensor(name, dtype, shape, file, base + begin, nbytes)
