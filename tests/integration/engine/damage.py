"""Copies of tiny models in which something is wrong, so that some inputs fail and others do not."""

import json
import shutil
from pathlib import Path


def poisoned(folder: Path, target: Path, tensor: str, row: int) -> Path:
    """A copy of `folder` at `target` whose weight that ends with `tensor` is not a number in `row`."""
    weights = Path(shutil.copytree(folder, target)) / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    [table] = [about for name, about in json.loads(raw[8:start]).items() if name.endswith(tensor)]
    assert table["dtype"] == "F32"
    size = 4 * table["shape"][1]
    at = start + table["data_offsets"][0] + row * size
    raw[at : at + size] = b"\xff" * size
    weights.write_bytes(raw)
    return target


def with_word(folder: Path, target: Path, word: str, number: int) -> Path:
    """A copy of `folder` whose tokenizer knows `word` under `number`, of which the model may know nothing."""
    path = Path(shutil.copytree(folder, target)) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": number, "content": word} | plain)
    path.write_text(json.dumps(tokenizer))
    return target


def without_unknown(folder: Path, target: Path) -> Path:
    """A copy of `folder` whose tokenizer fails at words that it does not know."""
    path = Path(shutil.copytree(folder, target)) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["unk_token"] = "[NONE]"
    path.write_text(json.dumps(tokenizer))
    return target
