"""The document as one HTML page without outside assets, scripts or anything a browser could fetch."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

_STYLE = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --post: #1a7f4b; --get: #1f5fbf; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
details > :not(summary) { margin-left: 1rem; margin-right: 1rem; }
summary { padding: .5rem .8rem; cursor: pointer; }
summary:hover { background: var(--soft); }
b { display: inline-block; width: 3.2rem; text-align: center; border-radius: .3rem; }
b { color: #fff; font-size: .8rem; }
.post { background: var(--post); }
.get { background: var(--get); }
code, pre { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { background: var(--soft); border-radius: .4rem; padding: .7rem; overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: 1rem; }
td, th { border-top: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
.soft { opacity: .7; }
"""


def page(document: Mapping[str, Any]) -> bytes:
    """`document`, one made by this package, as UTF-8 HTML."""
    return "".join(_page(document)).encode()


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    title = f"{document['info']['title']} {document['info']['version']}"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{_text(title)}</h1>'
    yield from (f"<p>{_text(part)}</p>" for part in document["info"]["description"].strip().split("\n\n"))
    yield '<p>For programs: <a href="api-doc/openapi.json">openapi.json</a></p>'
    tag = None
    for path, method, operation in _operations(document):
        if operation["tags"][0] != tag:
            tag = operation["tags"][0]
            yield f"<h2>{_text(tag)}</h2>"
        yield from _operation(path, method, operation)
    yield "<h2>Shapes</h2>"
    for name, schema in document["components"]["schemas"].items():
        # browsers open the details around a link's target, not the target itself
        shape = f'<div id="{_text(name)}">{_json(schema)}</div>'
        yield f"<details><summary>{_text(name)}</summary>{shape}</details>"


def _operations(document: Mapping[str, Any]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    every = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(operation["tags"][0] for _, _, operation in every))
    return sorted(every, key=lambda one: tags.index(one[2]["tags"][0]))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    summary = f"<code>{_text(path)}</code> <span class=soft>{_text(operation['summary'])}</span>"
    yield f"<details><summary><b class={method}>{method.upper()}</b> {summary}</summary>"
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>"
    if "security" in operation:
        yield "<p>Needs <code>Authorization: Bearer KEY</code>.</p>"
    for name, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Takes {_content(name, content)}</p>"
        if "example" in content:
            yield _json(content["example"])
    yield "<table>"
    for status, answer in operation["responses"].items():
        shapes = ", ".join(_content(name, content) for name, content in answer.get("content", {}).items())
        headers = ", ".join(f"<code>{_text(name)}</code>" for name in answer.get("headers", ()))
        cells = (f"<code>{status}</code>", _text(answer["description"]), shapes, headers)
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></details>"


def _content(name: str, content: Mapping[str, Any]) -> str:
    shape = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    link = f' <a href="#{_text(shape)}">{_text(shape)}</a>' if shape else ""
    return f"<code>{_text(name)}</code>{link}"


def _json(value: Any) -> str:
    return f"<pre>{_text(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())}</pre>"


def _text(value: str) -> str:
    """Escaped; what stands between backticks is code."""
    parts = html.escape(value).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
