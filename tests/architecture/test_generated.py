"""Generated files say what their sources say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_grpc_stubs_are_those_of_the_proto_files() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_protos.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_changed_proto_file_is_noticed(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "tools" / "generate_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import shutil

    copy = tmp_path / "proto"
    shutil.copytree(module.PROTO_ROOT, copy)
    module.PROTO_ROOT = copy
    assert module.stale() == []
    proto = copy / "tei" / "v1" / "tei.proto"
    proto.write_text(proto.read_text().replace("uint32 compute_chars = 1;", "uint32 compute_chars = 9;"))
    assert any("tei_pb2" in name for name in module.stale())


def test_reference_pages_are_those_of_the_code() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_docs.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_locks_name_no_host_and_no_torch_that_could_be_installed() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        text = path.read_text()
        assert "://" not in text, path
        for line in text.splitlines():
            if line.startswith(("torch==", "sentence-transformers==")):
                assert "sys_platform == 'never'" in line
