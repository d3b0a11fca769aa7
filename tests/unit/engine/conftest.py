"""Fixtures of the engine's unit tests: model folders, loaded once each."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tei_engine.graph.heads import Pooling
from tei_engine.models.configuration import Configuration, read_configuration
from tei_engine.models.model import Model, Threads
from tei_engine.tokenization.tokenizer import Tokenizer

TINY = Path(__file__).parents[2] / "fixtures" / "tiny_models"


class TinyModel:
    """One folder of fixtures/tiny_models, loaded."""

    def __init__(self, name: str) -> None:
        self.folder = TINY / name
        self.expected: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())
        # one splade folder has no modules.json, as older published ones
        pooling = Pooling.SPLADE if self.expected["kind"] == "splade" else None
        self.configuration: Configuration = read_configuration(self.folder, pooling=pooling)
        self.model = Model(self.folder, self.configuration, Threads(narrow=1, wide=2))
        self.tokenizer = Tokenizer(self.folder)


_load = cache(TinyModel)


@pytest.fixture
def tiny() -> Callable[[str], TinyModel]:
    """A tiny model by its folder's name."""
    return _load


@pytest.fixture
def tiny_folder() -> Callable[[str], Path]:
    """Where a tiny model lies."""
    return lambda name: TINY / name
