"""The reference page is the table of keys."""

from __future__ import annotations

from pathlib import Path

from tei_manager.config.reference import markdown
from tei_manager.config.schema import KEYS
from tei_manager.domain.spec import FIELDS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run tools/generate_docs.py"


def test_every_key_and_field_is_there():
    text = markdown()
    for key in KEYS:
        name = key.name.split(".")[-1]
        assert f"| `{name}`" in text or f"## `[{name}]`" in text
        assert key.doc.endswith(".")
    for field in FIELDS:
        assert f"| `{field.name}` |" in text
