"""The floor plan holds. What it says is in `.importlinter`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_import_contract_is_kept() -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert "0 broken" in run.stdout


def test_no_module_has_a_name_that_says_nothing() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc", "models", "manager"}
    found = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        if path.stem in banned and "proto" not in path.parts
    ]
    assert found == []


def test_no_source_file_is_too_long_to_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("src", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "_pb2" not in path.name and (lines := len(path.read_text().splitlines())) > 700
    }
    assert long == {}


def test_every_package_says_what_belongs_in_it() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("__init__.py")
        if "proto" not in path.parts and not path.read_text().startswith('"""')
    ]
    assert silent == []
