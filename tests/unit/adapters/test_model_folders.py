"""Models on this machine."""

from __future__ import annotations

from pathlib import Path

from tei_manager.adapters.model_folders import ModelFolders


def test_files_of_a_folder_and_of_those_in_it(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf", "README.md", "big/c.gguf", "big/deeper/d.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.gguf").mkdir()
    assert ModelFolders().files(str(tmp_path), ".gguf") == ("a.gguf", "b.gguf", "big/c.gguf")
    assert ModelFolders().files(str(tmp_path / "none"), ".gguf") == ()


def test_folders_of_paths_and_packages(tmp_path: Path) -> None:
    folders = ModelFolders()
    assert folders.folder(str(tmp_path)) == str(tmp_path)
    assert (folders.folder(str(tmp_path / "none")), folders.folder("org/name")) == (None, None)
    found = folders.folder("python:tei_manager/adapters")
    assert found is not None
    assert Path(found, "model_folders.py").is_file()
    assert folders.folder("python:no_such_package/x") is None
