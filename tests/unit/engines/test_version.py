from __future__ import annotations

import pytest

from tei_manager.engines.version import Version, is_known, is_supported, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("text-embeddings-router 1.9.3", Version(1, 9, 3)),
        ("text-embeddings-router 1.10\n", Version(1, 10, 0)),
        ("text-embeddings-router v1.8.3-dirty", Version(1, 8, 3)),
        ("tei-engine 0.1.0 (text-embeddings-router 1.9.3)", Version(1, 9, 3)),
        ("vllm 0.9", None),
        ("", None),
        (None, None),
    ],
)
def test_versions_are_read(text, version):
    assert parse_version(text) == version


def test_our_own_engine_is_told_apart():
    version = parse_version("tei-engine 0.1.0 (text-embeddings-router 1.9.3)")
    assert version is not None
    assert (version.engine, str(version)) == ("0.1.0", "1.9.3")


@pytest.mark.parametrize(
    ("version", "supported", "known"),
    [
        (Version(1, 6, 9), False, True),
        (Version(1, 7, 0), True, True),
        (Version(1, 9, 7), True, True),
        (Version(1, 10, 0), True, False),
        (None, True, False),
    ],
)
def test_the_gate(version, supported, known):
    assert (is_supported(version), is_known(version)) == (supported, known)
