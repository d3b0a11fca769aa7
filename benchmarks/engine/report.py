"""The result as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.report import FOREIGN_LIMIT, table

_TITLES = (
    "Subject",
    "Clients × texts",
    "p50 (ms)",
    "p99 (ms)",
    "Texts/s",
    "Tokens/s",
    "GFLOP/s",
    "Of ideal",
    "Net",
    "Others",
)


def markdown(result: Mapping[str, Any]) -> str:
    """Tables of the cases by set, and of the goals."""
    return "\n".join(_lines(result))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    machine, foreign, rss = result["machine"], result["foreign"], result["rss"]
    cold = result["cold_start_secs"]
    yield "- Machine: {cpu}, {cores} cores, {memory_gib} GiB, {system}".format(**machine)
    yield "- Versions: " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield "- Model: {model}; {threads} threads; rounds: {rounds}, in {took_secs} s".format(**result)
    load = " / ".join(map(str, machine["load_before"]))
    yield (
        f"- Other work: load {load} before; {_percent(foreign['median'])} of the machine during a set's median "
        f"round, {_percent(foreign['worst'])} during the worst; {foreign['repeats']} were repeated. "
        f"Figures with more than {_percent(FOREIGN_LIMIT)} are marked *"
    )
    yield (
        f"- Start to `Ready`: {cold['warm']} s, {_or_dash(cold['cold'])} s with the model's files not in the page "
        f"cache; memory {rss['ready_mib']} MiB when ready, {_or_dash(rss['peak_mib'])} MiB at most, weights "
        f"{rss['weights_mib']} MiB"
    )
    for texts in result["texts"]:
        yield f"\n### {_heading(texts)}\n"
        rows = [_cells(each) for each in result["cases"] if each["tokens"] == texts["tokens"]]
        yield from table(_TITLES, rows)
    yield "\n### Goals\n"
    if foreign["median"] > FOREIGN_LIMIT:
        yield "Others used too much of the machine for these to be a verdict.\n"
    yield from table(("Goal", "Target", "Value", ""), [_goal(each) for each in result["goals"]])


def _heading(texts: Mapping[str, Any]) -> str:
    kind = "Mixed lengths" if texts["tokens"] == "mixed" else f"{texts['tokens']} tokens"
    return f"{kind}: " + "{texts} texts, {shortest} to {longest} tokens, {mean} on average".format(**texts)


def _cells(case: Mapping[str, Any]) -> list[str]:
    share = case["foreign_share"]
    title = case["subject"] + (f" ({case['budget']})" if case["budget"] else "")
    return [
        title + (" *" if share is not None and share > FOREIGN_LIMIT else ""),
        f"{case['clients']} × {case['texts_per_request']}" if case["clients"] else "",
        *(_or_dash(case[name], ".2f") for name in ("p50_ms", "p99_ms")),
        *(_or_dash(case[name], ".0f") for name in ("texts_per_s", "tokens_per_s", "gflops")),
        *(_or_dash(case[name], ".3f") for name in ("ratio_to_ideal", "ratio_net")),
        "–" if share is None else _percent(share),
    ]


def _goal(goal: Mapping[str, Any]) -> list[str]:
    verdict = {True: "met", False: "**missed**", None: "not measured"}[goal["pass"]]
    return [goal["name"], goal["target"], _or_dash(goal["value"], ".3g"), verdict]


def _or_dash(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
