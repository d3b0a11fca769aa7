"""`tei-manager embed`: one call, shown so that a person can see whether the vectors make sense."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from operator import mul

from tei_manager.app.client import table
from tei_manager.app.client.console import Console
from tei_manager.app.client.failures import CommandFailed, ErrorAnswer, WrongUsage
from tei_manager.app.client.instances import connect, patience
from tei_manager.app.client.rest import Client, Json, instance_path

MOST_IN_MATRIX = 32  # beyond it nobody reads it, and it is quadratic work

Vector = Sequence[float]


def embed(options: argparse.Namespace, console: Console) -> int:
    texts = read_texts(options.texts, sys.stdin)
    client, name = connect(options), options.instance
    instance = look_up(client, name)
    # one that is being stopped or is asleep is for the manager to wake or refuse
    if instance.get("status") == "starting":
        with patience(client, console) as waiting:
            instance = waiting.until_running(instance, options.timeout)
    answer = request(client, name, texts, hint=instance.get("status") in ("stopped", "failed"))
    if options.json:
        console.json(answer, indent=None)
        return 0
    try:
        vectors = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
        lines = describe(texts, vectors)
    except (KeyError, TypeError, ValueError):
        raise CommandFailed("the answer holds no embeddings; --json shows it") from None
    for line in lines:
        console.line(line)
    if len(vectors) > MOST_IN_MATRIX:
        console.note(f"no similarity matrix: more than {MOST_IN_MATRIX} texts")
    return 0


def read_texts(given: Iterable[str], stdin: Iterable[str]) -> list[str]:
    """The texts of the command line; `-` stands for the lines of stdin that are not blank."""
    texts: list[str] = []
    for text in given:
        if text == "-":
            texts += [line.rstrip("\r\n") for line in stdin if line.strip()]
        else:
            texts.append(text)
    if not texts:
        raise WrongUsage("no text to embed: stdin holds no lines")
    return texts


def look_up(client: Client, name: str) -> Json:
    """The instance of that name, or the oldest one with that alias. Raises `ErrorAnswer` if there is neither."""
    try:
        instance: Json = client.get(instance_path(name))
        return instance
    except ErrorAnswer as unknown:
        if unknown.status != 404:
            raise
        for other in client.get("/instances"):
            if name in other.get("aliases", ()):
                return dict(other)
        raise


def request(client: Client, name: str, texts: list[str], *, hint: bool) -> Json:
    try:
        answer: Json = client.post("/v1/embeddings", {"model": name, "input": texts})
    except ErrorAnswer as error:
        if hint:
            raise CommandFailed(*error.lines, f"start it with 'tei-manager instances start {name}'") from None
        raise
    return answer


def describe(texts: Sequence[str], vectors: Sequence[Vector]) -> list[str]:
    """One line for each text, and what every pair has in common if there are pairs."""
    rows = [
        (
            str(index),
            str(len(vector)),
            "[" + ", ".join(f"{number:.4f}" for number in vector[:4]) + (", …]" if len(vector) > 4 else "]"),
            f"{math.hypot(*vector):.4f}",
            table.cut(text, 40),
        )
        for index, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]
    lines = table.render(("INDEX", "DIMENSIONS", "VECTOR", "NORM", "TEXT"), rows)
    if 2 <= len(vectors) <= MOST_IN_MATRIX:
        numbers = [str(index) for index in range(len(vectors))]
        cosines = [[f"{value:.4f}" for value in line] for line in similarities(vectors)]
        lines += ["", "cosine similarity"]
        lines += table.render(("", *numbers), [(n, *line) for n, line in zip(numbers, cosines, strict=True)])
    return lines


def similarities(vectors: Sequence[Vector]) -> list[list[float]]:
    """The cosine of every pair; a vector of zeros has nothing in common with any."""
    norms = [math.hypot(*vector) for vector in vectors]
    return [
        [sum(map(mul, a, b)) / (n * m) if n and m else 0.0 for b, m in zip(vectors, norms, strict=True)]
        for a, n in zip(vectors, norms, strict=True)
    ]
