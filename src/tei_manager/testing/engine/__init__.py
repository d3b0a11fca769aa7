"""An executable that pretends to be an inference server, for tests of whatever starts and calls such servers.

Run it as `python -m tei_manager.testing.engine` or `tei-testing-engine`. It takes the command line of TEI and of
`tei-engine`, speaks TEI's HTTP and gRPC and a little OpenAI, and misbehaves on request: see
docs/reference/testing-engine.md. Its answers follow from the texts alone; the functions exported here compute
them, so that a test knows what to expect.
"""

from __future__ import annotations

from tei_manager.testing.engine.answers import (
    chat_words,
    class_logits,
    decode,
    rank_logit,
    raw_vector,
    sigmoid,
    softmax,
    sparse_vector,
    token_id,
    vector,
)

__all__ = [
    "chat_words",
    "class_logits",
    "decode",
    "main",
    "rank_logit",
    "raw_vector",
    "sigmoid",
    "softmax",
    "sparse_vector",
    "token_id",
    "vector",
]


def main(argv: list[str] | None = None) -> int:
    """Run the program with these arguments (default: those of the process); the result is its exit code."""
    # imported here: a test that only wants `vector` needs no server
    from tei_manager.testing.engine.process import run

    return run(argv)
