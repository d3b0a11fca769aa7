"""Generate the Python stubs of our .proto files: `python tools/generate_protos.py [--check]`.

Two things differ from plain protoc output:

* the descriptors are registered in a pool of our own, so that a program which also imports stubs
  compiled from TEI's own `tei.proto` does not fail with a duplicate symbol;
* imports name our packages (`tei_manager.grpc.proto.tei.v1`), while the .proto files keep the short
  `tei/v1/tei.proto` that users of other languages compile with `-I .../tei_manager/grpc/proto`.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent.parent / "src" / "tei_manager" / "grpc" / "proto"
SOURCES = ("tei/v1/tei.proto", "multiplexer/v1/tei_multiplexer.proto")
PACKAGE = "tei_manager.grpc.proto"


def generate(out: Path) -> None:
    """Run protoc into `out` and adapt what it wrote."""
    from grpc_tools import protoc

    well_known = str(resources.files("grpc_tools") / "_proto")
    arguments = ["protoc", f"-I{PROTO_ROOT}", f"-I{well_known}"]
    arguments += [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main([*arguments, *SOURCES]) != 0:
        raise SystemExit("protoc failed")
    for path in stubs(out):
        path.write_text(adapt(path.read_text()))


def adapt(text: str) -> str:
    """Point imports at our package and descriptors at our pool."""
    text = re.sub(r"^from (tei|multiplexer)\.v1 import", rf"from {PACKAGE}.\1.v1 import", text, flags=re.MULTILINE)
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool",
        f"from {PACKAGE} import pool as _descriptor_pool",
    )
    return text.replace("_descriptor_pool.Default()", "_descriptor_pool.POOL")


def stubs(root: Path) -> list[Path]:
    """Every generated file below `root`."""
    return [path for path in sorted(root.rglob("*_pb2*")) if path.suffix in (".py", ".pyi")]


def generated(root: Path) -> dict[str, str]:
    """Relative path -> text of every generated file below `root`."""
    return {str(path.relative_to(root)): path.read_text() for path in stubs(root)}


def stale() -> list[str]:
    """Names of generated files that differ from what the .proto files say now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, present = generated(Path(folder)), generated(PROTO_ROOT)
    return sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def main() -> None:
    if "--check" in sys.argv[1:]:
        if names := stale():
            raise SystemExit(f"stale stubs, run `make protos`: {', '.join(names)}")
        return
    generate(PROTO_ROOT)


if __name__ == "__main__":
    main()
