"""The rules of loading: precedence, spellings, every problem at once with its origin."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tei_manager.config.load import Loaded, config_path, create_folders, load
from tei_manager.config.problems import ConfigProblems
from tei_manager.config.schema import KEYS, Config
from tei_manager.domain.instance import EngineKind


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def load_text(tmp_path: Path, home: dict[str, str]):
    def run(text: str, env: dict[str, str] | None = None, **flags: object) -> Loaded:
        file = tmp_path / "config.toml"
        file.write_text(text, encoding="utf-8")
        return load(file, home | (env or {}), flags)

    return run


@pytest.fixture
def problems(load_text):
    def run(text: str, env: dict[str, str] | None = None, **flags: object) -> list[str]:
        with pytest.raises(ConfigProblems) as caught:
            load_text(text, env, **flags)
        assert caught.value.code == "INVALID_CONFIG"
        return caught.value.lines()

    return run


def instance(name: str = "a", **fields: object) -> str:
    rows = "\n".join(
        f"{key} = {value!r}" for key, value in {"name": name, "model_id": "org/model", **fields}.items()
    )
    return f"[[instances]]\n{rows}\n"


def test_without_anything_the_defaults_count(home, tmp_path):
    loaded = load(None, home)
    config = loaded.config
    assert (config.host, config.api_port, config.grpc_host, config.grpc_port) == (
        "127.0.0.1",
        9000,
        "127.0.0.1",
        9001,
    )
    assert (config.max_body_mb, config.gateway.max_body_mb, config.embeddings.max_inputs) == (2, 32, 2048)
    assert (config.instance_port_start, config.instance_port_end, config.prometheus_port_start) == (
        8080,
        8180,
        9100,
    )
    assert config.state_file == tmp_path / "state" / "tei-manager" / "state.toml"
    assert config.log_dir == tmp_path / "state" / "tei-manager" / "logs"
    assert config.model_cache_dir == tmp_path / ".cache" / "huggingface" / "hub"
    assert (loaded.path, loaded.warnings, loaded.entries, config.max_instances) == (None, (), (), None)
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == {key.name for key in KEYS} | {"instances"}


def test_a_config_can_be_made_without_loading():
    assert dataclasses.replace(Config(), api_port=9100).api_port == 9100
    assert Config().state_file.name == "state.toml"


def test_defaults_file_environment_flags(load_text):
    text = "host = 'localhost'\napi_port = 9100\ngrpc_port = 9200\nlog_level = 'debug'\n"
    loaded = load_text(text, {"TEI_MANAGER_API_PORT": "9101", "TEI_MANAGER_GRPC_PORT": "9201"}, api_port=9102)
    assert (loaded.config.api_port, loaded.config.grpc_port, loaded.config.host) == (9102, 9201, "localhost")
    assert loaded.config.grpc_host == "localhost"
    assert {name: loaded.origins[name] for name in ("api_port", "grpc_port", "log_level", "grpc_host")} == {
        "api_port": "flag:--port",
        "grpc_port": "env:TEI_MANAGER_GRPC_PORT",
        "log_level": "file:4",
        "grpc_host": "default",
    }


def test_flags_are_named_by_key_or_by_flag_and_none_means_not_given(home):
    loaded = load(None, home, {"--port": "9100", "--host": None, "insecure": True})
    assert (loaded.config.api_port, loaded.config.host, loaded.config.insecure) == (9100, "127.0.0.1", True)
    assert loaded.origins["insecure"] == "flag:--insecure"
    with pytest.raises(ConfigProblems) as caught:
        load(None, home, {"--log-level": "loud", "api_port": 80})
    assert caught.value.lines() == [
        "flag:--log-level: log_level: Invalid --log-level value 'loud': expected trace, debug, info, warn or"
        " error, or a comma list with logger=LEVEL parts",
        "flag:--port: api_port: expected an integer 1024-65535",
    ]
    with pytest.raises(KeyError):
        load(None, home, {"--no-such": 1})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("grpc_port = 9100", "grpc_port", 9100),
        ("[grpc]\nport = 9100", "grpc_port", 9100),
        ("[grpc]\nmultiplexer_port = 9100", "grpc_port", 9100),
        ("[grpc]\ngrpc_port = 9100", "grpc_port", 9100),
        ("grpc.port = 9100", "grpc_port", 9100),
        ("grpc = {port = 9100}", "grpc_port", 9100),
        ("[grpc]\nmax_parallel_streams = 7", "grpc_max_parallel_streams", 7),
        ("[grpc]\nenabled = false", "grpc_enabled", False),
        ("[grpc]\nhost = '::1'", "grpc_host", "::1"),
        ("[grpc]\ndefault_target = 'a'", "grpc_default_target", "a"),
        ("[log]\nlevel = 'tei_manager.control=debug,info'", "log_level", "tei_manager.control=debug,info"),
        ("[log]\nformat = 'pretty'", "log_format", "pretty"),
        ("[log]\ndir = '/var/log/x'", "log_dir", Path("/var/log/x")),
        ("[server]\nport = 9100", "api_port", 9100),
        ("[server]\napi_port = 9100", "api_port", 9100),
        ("[server]\nhost = 'localhost'", "host", "localhost"),
        ("[server]\nmax_body_mb = 3", "max_body_mb", 3),
        ("[server]\nallowed_hosts = ['box.lan']", "allowed_hosts", ("box.lan",)),
        ("[server]\ncors_origins = ['http://localhost:3000']", "cors_origins", ("http://localhost:3000",)),
        ("grpc_request_timeout_secs = 0", "grpc_request_timeout_secs", 0.0),
        ("max_instances = 5", "max_instances", 5),
        ("state_file = '~/s.toml'", "state_file", "HOME/s.toml"),
        ("model_roots = ['~/m']", "model_roots", ("HOME/m",)),
        ("tei_binary_path = '~/bin/tei'", "tei_binary_path", "HOME/bin/tei"),
        ("llamacpp_binary_path = '~/llama'", "llamacpp_binary_path", "HOME/llama"),
        ("vllm_command = ['uvx', 'vllm', 'serve']", "vllm_command", ("uvx", "vllm", "serve")),
    ],
)
def test_flat_and_table_spelling_are_equal(load_text, tmp_path, text, key, value):
    found = getattr(load_text(text).config, key)
    as_text = str(found).replace(str(tmp_path), "HOME")
    assert as_text == str(value) or as_text == f"(PosixPath('{value[0]}'),)" or found == value


def test_programs_of_engines(load_text, problems, tmp_path):
    config = load_text("vllm_command = ['~/bin/vllm', 'serve']").config
    assert config.vllm_command == (str(tmp_path / "bin/vllm"), "serve")
    assert load_text("api_port = 9100").config.vllm_command == ("vllm", "serve")
    assert problems("vllm_command = []\nllamacpp_binary_path = ''") == [
        "file:1: vllm_command: expected a list of 1 to 64 items, each a text that is not empty, got []",
        'file:2: llamacpp_binary_path: expected a program name or path, got ""',
    ]
    (line,) = load_text(instance("a", model_id="org/m-GGUF:Q4_K_M", engine="llamacpp")).config.instances
    assert line["model_id"] == "org/m-GGUF:Q4_K_M"


def test_both_spellings_in_one_file_are_a_problem(problems):
    assert problems("grpc_port = 9100\n\n[grpc]\nport = 9100\n") == [
        "file:4: grpc.port: the same key as 'grpc_port' (file:1): keep one of the two"
    ]


def test_a_relative_path_starts_at_the_current_folder(load_text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_text("log_dir = 'logs'").config.log_dir == tmp_path / "logs"


def test_all_problems_at_once(problems):
    text = """\
grpc_enabled = "yes"
api_prot = 1

[grpc]
prot = 1
max_parallel_streams = 0

[auth]
enabled = true
[on_demand.liveness]
x.y = 1

[gateway]
api_port = 9100

[[instances]]
name = "a"
model_id = "org/m"
log_leve = "x"

[[instances]]
model_id = "bad--id"
api_port = 3
grpc.port = 9
"""
    env = {"TEI_MANAGER_API_PORT": "abc", "TEI_MANAGER__GRPC__PROT": "1", "TEI_MANAGER__X": "1"}
    above = "server key below a table header: move it above the first table"
    assert problems(text, env, grpc_port="x") == [
        'file:1: grpc_enabled: expected true or false, got "yes"',
        "file:2: api_prot: unknown key, did you mean 'api_port'?",
        "file:5: grpc.prot: unknown key, did you mean 'grpc.port'?",
        "file:6: grpc.max_parallel_streams: expected an integer 1-65535, got 0",
        "file:9: auth.enabled: unknown key",
        "file:11: on_demand.liveness.x.y: unknown key",
        f"file:14: gateway.api_port: {above}",
        "file:19: instances[0].log_leve: unknown key, did you mean 'log_level'?",
        "file:21: instances[1].name: is required",
        "file:22: instances[1].model_id: expected a hub id like 'org/name', an absolute folder, or"
        " 'python:PACKAGE/folder', got \"bad--id\"",
        f"file:23: instances[1].api_port: {above}",
        f"file:24: instances[1].grpc: {above}",
        "env:TEI_MANAGER_API_PORT: api_port: Invalid TEI_MANAGER_API_PORT value 'abc': expected an integer"
        " 1024-65535",
        "env:TEI_MANAGER__GRPC__PROT: grpc.prot: unknown key, did you mean TEI_MANAGER__GRPC__PORT?",
        "env:TEI_MANAGER__X: x: unknown key",
        "flag:--grpc-port: grpc_port: Invalid --grpc-port value 'x': expected an integer 1024-65535",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grpc = 5", "file:1: grpc: expected a table, got 5"),
        ("health_check_interval_secs = 0", "file:1: health_check_interval_secs: expected a number > 0"),
        ("health_check_timeout_secs = 0", "file:1: health_check_timeout_secs: expected a number > 0"),
        (
            "grpc_max_message_size_mb = 1025",
            "file:1: grpc_max_message_size_mb: expected an integer 1-1024, got 1025",
        ),
        ("api_port = true", "file:1: api_port: expected an integer 1024-65535, got true"),
        ("drain_timeout_secs = nan", "file:1: drain_timeout_secs: expected a number >= 0"),
        ("cors_origins = ['*']", "file:1: cors_origins: expected an origin like"),
        ("api_port = 9001", "default: grpc_port: port 9001 is also api_port: they must differ"),
        ("host = '0.0.0.0'", "file:1: host: '0.0.0.0' is not a loopback address and there is no authentication"),
        ("grpc_host = 'box.lan'", "file:1: grpc_host: 'box.lan' is not a loopback address"),
        ("instance_port_end = 8080", "file:1: instance_port_end: 8080 must be greater than instance_port_start"),
        ("instance_port_start = 1023", "file:1: instance_port_start: expected an integer 1024-65535, got 1023"),
        (
            "max_instances = 101",
            "default: instance_port_end: 8080 to 8180 holds 100 ports, max_instances = 101 needs",
        ),
        ("instances = 1", "file:1: instances: is always an array of tables, [[instances]]"),
        ("[instances]\nname = 'a'", "file:1: instances: is always an array of tables, [[instances]]"),
        ("[model_sources]\n'org/m' = 'rel/x'", 'file:2: model_sources."org/m": expected an absolute folder or'),
        ("[model_sources]\n'a b' = '/x'", 'file:2: model_sources."a b": expected a hub id'),
        ("[model_sources]\n'org/m' = 'python:p/../x'", 'file:2: model_sources."org/m": expected an absolute'),
        ("\n[model_sources]\nhost = 'x'", "file:3: model_sources.host: server key below a table header"),
        ("state_file = ''", "file:1: state_file: expected a path"),
        ("log_dir = '~no-such-user/x'", "file:1: log_dir: no home folder for '~no-such-user'"),
    ],
)
def test_refused_values(problems, text, line):
    (found,) = problems(text)
    assert found.startswith(line)


def test_rules_about_a_broken_key_are_silent(problems):
    assert len(problems("host = '0.0.0.0'\ninsecure = 'x'")) == 1


def test_disabled_grpc_needs_no_port_and_no_host(load_text):
    assert load_text("api_port = 9001\ngrpc_enabled = false\ngrpc_host = '0.0.0.0'").config.api_port == 9001


def test_insecure_opens_the_listeners_and_warns(load_text):
    loaded = load_text("host = '0.0.0.0'\ninsecure = true")
    assert loaded.config.grpc_host == "0.0.0.0"
    assert [notice.code for notice in loaded.warnings] == ["AUTH_DISABLED"]


def test_two_ports_each_for_embedded_engines(load_text, problems):
    text = "max_instances = 60\n"
    assert [notice.code for notice in load_text(text).warnings] == ["PORT_RANGE_SMALL"]
    (line,) = problems(text + instance(engine="embedded"))
    assert line.endswith("needs 120, two for each because of embedded engines: set it to 8200 or more")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (instance("a") + instance("a"), "file:5: instances[1].name: 'a' is already the name of instances[0]"),
        (
            instance("a") + instance("A"),
            "file:5: instances[1].name: 'A' is already the name of instances[0] ('a'; na",
        ),
        (
            instance("a", port=8080) + instance("b", port=8080),
            "file:8: instances[1].port: port 8080 is already instanc",
        ),
        (instance("a", port=9000), "file:4: instances[0].port: port 9000 is already api_port"),
        (instance("a", port=9001), "file:4: instances[0].port: port 9001 is already grpc_port"),
        (
            instance("a", prometheus_port=9000),
            "file:4: instances[0].prometheus_port: port 9000 is already api_port",
        ),
        (instance("a", port=80), "file:4: instances[0].port: expected an integer 1024-65535 or 0, got 80"),
        (
            instance("a", model_id="org/model:Q4_0", engine="tei"),
            "file:3: instances[0].model_id: ':QUANT' is only for engine 'llamacpp'",
        ),
        (
            instance("a", model_id="org/model:", engine="llamacpp"),
            "file:3: instances[0].model_id: expected a hub id like 'org/name'",
        ),
        (
            instance("a", engine="vllm", extra_args=["--seed", "1", "--port", "1"]),
            "file:1: instances[0].extra_args[2]: --port is set by the manager",
        ),
        (instance("a", engine="sglang"), "file:4: instances[0].engine: expected one of embedded, tei, vllm"),
        (instance("a", command=["x"]), "file:4: instances[0].command: is only for engine 'command'"),
        (instance("a", gpu_id=0, gpu_ids=[1]), "file:5: instances[0].gpu_ids: give gpu_id or gpu_ids, not both"),
    ],
)
def test_refused_instances(problems, text, line):
    (found,) = problems(text)
    assert found.startswith(line)


def test_a_secret_in_a_refused_entry_is_not_repeated(problems):
    (line,) = problems(instance() + "[instances.env]\nHF_TOKEN = 'hf_geheim'\nPATH = '/x'\n")
    assert line.startswith("file:6: instances[0].env.PATH: expected")
    assert "geheim" not in line


def test_instances_are_kept_as_written_and_checked(load_text):
    loaded = load_text(instance("a", port=8081) + instance("b", engine="command", command=["x", "{port}"]))
    assert loaded.entries[0] == {"name": "a", "model_id": "org/model", "port": 8081}
    assert loaded.origins["instances"] == "file:1"
    assert loaded.origins["instances[0].port"] == "file:4"
    assert [spec.engine for spec in loaded.specs(EngineKind.TEI)] == [EngineKind.TEI, EngineKind.COMMAND]
    assert [spec.engine for spec in loaded.specs(EngineKind.EMBEDDED)] == [EngineKind.EMBEDDED, EngineKind.COMMAND]


def test_instances_of_the_environment_replace_those_of_the_file(load_text):
    env = {"TEI_MANAGER__INSTANCES": '[{"name": "b", "model_id": "org/model", "port": null}]'}
    loaded = load_text(instance("a", port=8081) + "[model_sources]\n'x/y' = '/z'", env)
    assert [spec.name for spec in loaded.specs(EngineKind.EMBEDDED)] == ["b"]
    assert {name: origin for name, origin in loaded.origins.items() if name.startswith("instances")} == {
        "instances": "env:TEI_MANAGER__INSTANCES",
        "instances[0].name": "env:TEI_MANAGER__INSTANCES",
        "instances[0].model_id": "env:TEI_MANAGER__INSTANCES",
        "instances[0].port": "env:TEI_MANAGER__INSTANCES",
    }
    assert loaded.config.model_sources == {"x/y": "/z"}


def test_files_that_cannot_be_read(tmp_path, home):
    cases = {
        "missing.toml": (None, "No such file or directory"),
        "empty.toml": (b"", "the file is empty: name another one, or start without -c for the built-in values"),
        "blank.toml": (b" \n\n", "the file is empty"),
        "latin.toml": (b"host = '\xff'", "not UTF-8 text: invalid start byte at byte 8"),
    }
    for name, (content, reason) in cases.items():
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigProblems) as caught:
            load(file, home)
        (line,) = caught.value.lines()
        assert line.startswith(f"file: {file}: {reason}")
    with pytest.raises(ConfigProblems, match="is a folder, expected a TOML file"):
        load(tmp_path, home)
    with pytest.raises(ConfigProblems, match="the file is empty"):
        load(Path("/dev/null"), home)


def test_an_unreadable_file_is_named(tmp_path, home, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text("api_port = 9100")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigProblems, match=f"file: {file}: Permission denied"):
        load(file, home)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("host = 'a'\nport =\n", "file:2: "),
        ("a = 1\na = 2", "file:2: "),
        ("a = [1,\n", "file:2: "),
        ("a = " + "[" * 5000, "file:1: "),
        ("a = 1" + "0" * 5000, "file:1: "),
    ],
)
def test_bad_toml_is_one_problem_with_its_line(problems, tmp_path, text, line):
    (found,) = problems(text)
    assert found.startswith(f"{line}{tmp_path / 'config.toml'}: not valid TOML: ")


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path, home):
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbfhost = 'localhost'\r\napi_port = 9100\r\n")
    loaded = load(file, home)
    assert (loaded.config.api_port, loaded.origins["api_port"]) == (9100, "file:2")


def test_a_problem_is_one_line_whatever_it_quotes(home):
    with pytest.raises(ConfigProblems) as caught:
        load(None, home | {"TEI_MANAGER_API_PORT": "a\nb\x1b[31m"})
    (line,) = caught.value.lines()
    assert "'a\\x0ab\\x1b[31m'" in line
    assert caught.value.details["problems"][0]["path"] == "api_port"


def test_the_file_that_was_asked_for():
    assert config_path(None, {}) is None
    assert config_path(None, {"TEI_MANAGER_CONFIG": ""}) is None
    assert config_path(None, {"TEI_MANAGER_CONFIG": "/a"}) == Path("/a")
    assert config_path("/b", {"TEI_MANAGER_CONFIG": "/a"}) == Path("/b")


def test_folders_are_created_on_demand_or_named(load_text, tmp_path):
    loaded = load_text(f"state_file = '{tmp_path}/x/s.toml'\nlog_dir = '{tmp_path}/y/z'")
    assert not (tmp_path / "x").exists()
    create_folders(loaded)
    assert (tmp_path / "x").is_dir()
    assert (tmp_path / "y" / "z").is_dir()

    (tmp_path / "file").touch()
    loaded = load_text(f"state_file = '{tmp_path}/x'\nlog_dir = '{tmp_path}/file/logs'")
    with pytest.raises(ConfigProblems) as caught:
        create_folders(loaded)
    assert caught.value.lines() == [
        f'file:2: log_dir: cannot use folder "{tmp_path}/file/logs": Not a directory',
        "file:1: state_file: is a folder",
    ]
