"""Write the reference pages that are drawn from the code: `python tools/generate_docs.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tei_manager.config import reference
from tei_manager.policy import lifecycle

DOCS = Path(__file__).resolve().parent.parent / "docs"


def lifecycle_page() -> str:
    """The lifecycle table as a diagram and as rows."""
    rows = "\n".join(
        f"| {row.state.name} | {row.event} | {', '.join(sorted(row.when)) or '–'} | {row.next.name} "
        f"| {', '.join(row.effects) or '–'} |"
        for row in lifecycle.TABLE
    )
    statuses = "\n".join(f"| {state.name} | `{status}` |" for state, status in lifecycle.STATUS.items())
    return f"""# The life of an instance

Drawn from `tei_manager.policy.lifecycle` by `make docs`. An event that has no row in a state means nothing there,
so a late or doubled event is harmless. Of several rows for one pair, the first whose facts all hold is taken.

```mermaid
{lifecycle.diagram()}```

| state | `status` in the API |
|---|---|
{statuses}

| state | event | only if | next | effects, in order |
|---|---|---|---|---|
{rows}
"""


PAGES = {
    "reference/lifecycle.md": lifecycle_page,
    "reference/configuration.md": reference.markdown,
}


def main() -> None:
    stale = [name for name, page in PAGES.items() if not _is_fresh(DOCS / name, page())]
    if "--check" in sys.argv[1:]:
        if stale:
            raise SystemExit(f"stale pages, run `make docs`: {', '.join(stale)}")
        return
    for name in stale:
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGES[name]())


def _is_fresh(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    main()
