"""The result as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cases import QUERY_WORDS

FOREIGN_LIMIT = 0.1  # share of the machine beyond which a row says more about others than about us
_HEADINGS = {
    "unary": ("Unary RPCs", "Text Size", "one `Embed`"),
    "concurrent": ("Concurrent Requests", "Concurrency", f"so many `Embed` of {QUERY_WORDS} words at once"),
    "stream": ("Streaming RPCs", "Batch Size", f"one `EmbedStream` of so many texts of {QUERY_WORDS} words"),
    "http": ("HTTP", "Request", f"`POST /embed` against `/v1/embeddings`, texts of {QUERY_WORDS} words"),
}
_COLUMNS = ("Direct (µs)", "{} (µs)", "Overhead (µs)", "Overhead %", "p99 Direct (µs)", "p99 {} (µs)")
_RATES = ("Direct (1/s)", "{} (1/s)")
_LAST = ("Manager CPU (µs/call)", "Samples")


def markdown(result: Mapping[str, Any]) -> str:
    return "\n".join(_lines(result))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    machine, manager = result["machine"], result["manager"]
    yield "- Machine: {cpu}, {cores} cores, {memory_gib} GiB, {system}".format(**machine)
    yield "- Versions: " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load = " / ".join(map(str, machine["load_before"]))
    foreign = [100 * case["foreign_share"] for case in result["cases"]]
    yield (
        f"- Other work: load {load} before; {statistics.median(foreign):.0f} % of the machine during the median "
        f"row, {max(foreign):.0f} % during the worst. Rows with more than {100 * FOREIGN_LIMIT:.0f} % are marked *"
    )
    yield (
        f"- Manager: all instances running after {manager['ready_secs']} s; resident memory "
        f"{manager['rss_mib_before']} MiB before, {manager['rss_mib_after']} MiB after {manager['calls']} calls"
    )
    for engine in result["engines"]:
        yield f"\n## {engine['title'].capitalize()}\n\nModel: {engine['model']}"
        for kind, (title, first, what) in _HEADINGS.items():
            rows = [case for case in result["cases"] if case["engine"] == engine["name"] and case["kind"] == kind]
            if rows:
                yield f"\n### {title}: {what}\n"
                yield from _table(kind, first, rows)


def _table(kind: str, first: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    is_http = kind == "http"
    product = "Gateway" if is_http else "Multiplexer"
    titles = [each.format(product) for each in (first, *_COLUMNS, *(_RATES if is_http else ()), *_LAST)]
    yield from table(titles, [_cells(row, is_http) for row in rows])


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table whose first column is text and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    yield _row(titles, widths)
    yield "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    for each in rows:
        yield _row(each, widths)


def _cells(row: Mapping[str, Any], is_http: bool) -> list[str]:
    direct, product = row["direct"], row["product"]
    times = [direct["p50_us"], product["p50_us"], row["overhead_us"]]
    label = row["label"] + (" *" if row["foreign_share"] > FOREIGN_LIMIT else "")
    cells = [label, *(f"{each:.0f}" for each in times), f"{row['overhead_percent']:.0f} %"]
    cells += [f"{direct['p99_us']:.0f}", f"{product['p99_us']:.0f}"]
    if is_http:
        cells += [f"{direct['per_sec']:.0f}", f"{product['per_sec']:.0f}"]
    return [*cells, f"{row['manager_cpu_us']:.0f}", str(product["samples"])]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join((first, *others)) + " |"
