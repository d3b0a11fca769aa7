"""The printed configuration says the truth, hides secrets, and can be loaded again."""

from __future__ import annotations

import json
import tomllib

from tei_manager.config import show
from tei_manager.config.load import load

TEXT = """\
api_port = 9100
max_instances = 3
grpc.request_timeout_secs = 1.5
[model_sources]
"org/name" = "/x/y"
[[instances]]
name = "a"
model_id = "org/m"
extra_args = ["--x", "y"]
[instances.env]
HF_TOKEN = "hf_geheim"
MY_KEY = "geheim"
FOO = "bar"
"""


def loaded(tmp_path, text=TEXT, **environ):
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load(file, {"HOME": str(tmp_path), **environ}, {"--log-level": "debug"})


def test_toml_has_origins_and_loads_to_the_same(tmp_path):
    first = loaded(tmp_path, TEI_MANAGER_SERVICE_HOST="x", RUST_LOG="a\nb")
    text = show.as_toml(first)
    assert "api_port = 9100  # file:1\n" in text
    assert "grpc_request_timeout_secs = 1.5  # file:3\n" in text
    assert 'log_level = "debug"  # flag:--log-level\n' in text
    assert "max_body_mb = 32  # default" in text
    assert "# warning: SERVICE_LINK_IGNORED: TEI_MANAGER_SERVICE_HOST" in text
    assert "geheim" not in text
    assert tomllib.loads(text)["instances"][0]["env"] == {"HF_TOKEN": "***", "MY_KEY": "***", "FOO": "bar"}

    again = tmp_path / "again.toml"
    again.write_text(text)
    second = load(again, {"HOME": str(tmp_path)})
    assert show.values(second) == show.values(first)


def test_json_has_everything_nested(tmp_path):
    document = json.loads(show.as_json(loaded(tmp_path)))
    assert document["file"] == str(tmp_path / "c.toml")
    assert document["values"]["gateway"] == {"max_body_mb": 32, "request_timeout_secs": 600}
    assert document["values"]["model_sources"] == {"org/name": "/x/y"}
    assert document["values"]["instances"][0]["env"]["HF_TOKEN"] == "***"
    assert document["origins"]["instances[0].env"] == "file:10"
    assert document["warnings"] == []


def test_unset_values_and_nulls_are_comments_in_toml(tmp_path):
    entries = '[{"name": "a", "model_id": "org/m", "port": null, "env": {}}]'
    text = show.as_toml(load(None, {"HOME": str(tmp_path), "TEI_MANAGER__INSTANCES": entries}))
    assert "# max_instances is unset  # default\n" in text
    assert "# port is unset  # env:TEI_MANAGER__INSTANCES\n" in text
    assert "# file: none" in text
    assert tomllib.loads(text)["instances"] == [{"name": "a", "model_id": "org/m", "env": {}}]
    assert json.loads(show.as_json(load(None, {"HOME": str(tmp_path)})))["file"] is None
