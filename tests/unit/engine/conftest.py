"""Fixtures of the engine's unit tests: model folders, loaded once each."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tei_engine.models.configuration import Configuration, read_configuration
from tei_engine.models.embedder import Embedder, Threads
from tei_engine.tokenization.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "fixtures" / "tiny_models"


class TinyModel:
    """One folder of fixtures/tiny_models, loaded."""

    def __init__(self, name: str) -> None:
        self.folder = TINY / name
        self.configuration: Configuration = read_configuration(self.folder)
        self.model = Embedder(self.folder, self.configuration, Threads(narrow=1, wide=2))
        self.tokenizer = Tokenizer(self.folder)
        self.expected: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())


_load = cache(TinyModel)


@pytest.fixture
def tiny() -> Callable[[str], TinyModel]:
    """A tiny model by its folder's name."""
    return _load


@pytest.fixture
def tiny_folder() -> Callable[[str], Path]:
    """Where a tiny model lies."""
    return lambda name: TINY / name
