"""Variables: the named ones, the general form, borrowed ones, links and unknown ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tei_manager.config.load import load
from tei_manager.config.problems import ConfigProblems
from tei_manager.config.schema import BY_NAME, KEYS, value_of
from tei_manager.kits.parsing import Boolean, Integer

HOME = {"HOME": "/home/me"}


def config(**environ: str):
    return load(None, HOME | environ).config


def problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        load(None, HOME | environ)
    return caught.value.lines()


def warnings(**environ: str) -> list[str]:
    return [notice.message for notice in load(None, HOME | environ).warnings]


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("TEI_MANAGER_API_PORT", "9100", "api_port", 9100),
        ("TEI_MANAGER_HOST", "localhost", "host", "localhost"),
        ("TEI_MANAGER_INSECURE", "yes", "insecure", True),
        ("TEI_MANAGER_GRPC_PORT", "9100", "grpc_port", 9100),
        ("TEI_MANAGER_GRPC_ENABLED", "off", "grpc_enabled", False),
        ("TEI_MANAGER_GRPC_MAX_STREAMS", "9", "grpc_max_parallel_streams", 9),
        ("TEI_MANAGER_HEALTH_CHECK_INTERVAL", "1.5", "health_check_interval_secs", 1.5),
        ("TEI_MANAGER_HEALTH_CHECK_INITIAL_DELAY", "0", "health_check_initial_delay_secs", 0.0),
        ("TEI_MANAGER_AUTO_RESTORE", "0", "auto_restore_on_restart", False),
        ("TEI_MANAGER_STATE_FILE", "/data/s.toml", "state_file", Path("/data/s.toml")),
        ("TEI_MANAGER_LOG_DIR", "/data/logs", "log_dir", Path("/data/logs")),
        ("TEI_MANAGER_LOG_LEVEL", "debug", "log_level", "debug"),
        ("TEI_MANAGER_LOG_FORMAT", "pretty", "log_format", "pretty"),
        ("TEI_BINARY_PATH", "/usr/bin/tei", "tei_binary_path", "/usr/bin/tei"),
        ("LOG_LEVEL", "WARNING", "log_level", "WARNING"),
        ("RUST_LOG", "tei_manager::control=debug,info", "log_level", "tei_manager::control=debug,info"),
        ("TEI_MANAGER__API_PORT", "9100", "api_port", 9100),
        ("TEI_MANAGER__SERVER__PORT", "9100", "api_port", 9100),
        ("TEI_MANAGER__GRPC__MAX_MESSAGE_SIZE_MB", "64", "grpc_max_message_size_mb", 64),
        ("TEI_MANAGER__GRPC_PORT", "9100", "grpc_port", 9100),
        ("TEI_MANAGER__GATEWAY__MAX_BODY_MB", "64", "gateway.max_body_mb", 64),
        ("TEI_MANAGER__MAX_INSTANCES", "5", "max_instances", 5),
        ("TEI_MANAGER__CORS_ORIGINS", '["http://a"]', "cors_origins", ("http://a",)),
        ("TEI_MANAGER__MODEL_SOURCES", '{"org/m": "/x"}', "model_sources", {"org/m": "/x"}),
        ("TEI_MANAGER__GATEWAY", '{"max_body_mb": 5}', "gateway.max_body_mb", 5),
    ],
)
def test_variables(variable, text, key, value):
    loaded = load(None, HOME | {variable: text})
    assert value_of(loaded.config, key) == value
    assert loaded.origins[key] == f"env:{variable}"


def test_empty_is_unset():
    assert config(TEI_MANAGER_API_PORT="", TEI_MANAGER__GRPC__PORT="", LOG_LEVEL="").api_port == 9000


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"TEI_MANAGER_API_PORT": "abc"},
            "env:TEI_MANAGER_API_PORT: api_port: Invalid TEI_MANAGER_API_PORT value 'abc': expected an integer"
            " 1024-65535",
        ),
        (
            {"TEI_MANAGER_GRPC_ENABLED": "ja"},
            "env:TEI_MANAGER_GRPC_ENABLED: grpc_enabled: Invalid TEI_MANAGER_GRPC_ENABLED value 'ja': expected"
            " true or false",
        ),
        (
            {"TEI_MANAGER_GRPC_PORT": "9100", "TEI_MANAGER__GRPC__PORT": "9200"},
            "env:TEI_MANAGER__GRPC__PORT: grpc_port: TEI_MANAGER_GRPC_PORT is set to a different value:"
            " keep one of the two",
        ),
        (
            {"TEI_MANAGER__GRPC": '{"port": 9100}', "TEI_MANAGER__GRPC__PORT": "9200"},
            "env:TEI_MANAGER__GRPC__PORT: grpc_port: TEI_MANAGER__GRPC is set to a different value:"
            " keep one of the two",
        ),
        (
            {"TEI_MANAGER__GRPC__MAX_STREAM": "1"},
            "env:TEI_MANAGER__GRPC__MAX_STREAM: grpc.max_stream: unknown key",
        ),
        (
            {"TEI_MANAGER__API_PROT": "1"},
            "env:TEI_MANAGER__API_PROT: api_prot: unknown key, did you mean TEI_MANAGER__API_PORT?",
        ),
        (
            {"TEI_MANAGER__INSTANCES": "[1"},
            "env:TEI_MANAGER__INSTANCES: instances: Invalid TEI_MANAGER__INSTANCES value: expected an array of"
            " tables as JSON",
        ),
        (
            {"TEI_MANAGER__GRPC": "5"},
            "env:TEI_MANAGER__GRPC: grpc: expected a table, got 5",
        ),
        (
            {"TEI_MANAGER__ALLOWED_HOSTS": "a,b"},
            "env:TEI_MANAGER__ALLOWED_HOSTS: allowed_hosts: Invalid TEI_MANAGER__ALLOWED_HOSTS value 'a,b':"
            " expected JSON: a list of at most 1024 items, each an IP address or a host name",
        ),
        (
            {"TEI_MANAGER_LOG_LEVEL": "loud"},
            "env:TEI_MANAGER_LOG_LEVEL: log_level: Invalid TEI_MANAGER_LOG_LEVEL value 'loud': expected trace,"
            " debug, info, warn or error, or a comma list with logger=LEVEL parts",
        ),
    ],
)
def test_refused_variables(environ, line):
    assert problems(**environ) == [line]


def test_both_forms_with_one_value_are_fine():
    assert config(TEI_MANAGER_GRPC_ENABLED="no", TEI_MANAGER__GRPC__ENABLED="false").grpc_enabled is False


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TEI_MANAGER_API_PROT": "1"}, "TEI_MANAGER_API_PROT, did you mean TEI_MANAGER_API_PORT?"),
        ({"TEI_MANAGER_MAX_INSTANCES": "1"}, "did you mean TEI_MANAGER__MAX_INSTANCES?"),
        ({"TEI_MANAGER_OTEL_ENDPOINT": "x"}, "unknown environment variable TEI_MANAGER_OTEL_ENDPOINT"),
        ({"TEI_MANAGER_API_PORT": "tcp://10.0.0.1:80"}, "TEI_MANAGER_API_PORT looks like a service link"),
        ({"TEI_MANAGER__API_PORT": "udp://10.0.0.1:80"}, "TEI_MANAGER__API_PORT looks like a service link"),
        (
            {"TEI_MANAGER_PORT_9000_TCP_ADDR": "10.0.0.1"},
            "TEI_MANAGER_PORT_9000_TCP_ADDR looks like a service link",
        ),
        ({"TEI_MANAGER_SERVICE_HOST": "10.0.0.1"}, "TEI_MANAGER_SERVICE_HOST looks like a service link"),
        ({"LOG_LEVEL": "loud"}, "Invalid LOG_LEVEL value 'loud'"),
        ({"RUST_LOG": "=x"}, "Invalid RUST_LOG value '=x'"),
    ],
)
def test_odd_variables_only_warn(environ, message):
    (found,) = warnings(**environ)
    assert message in found
    assert config(**environ).api_port == 9000


def test_the_known_names_of_others_are_silent():
    known = ("CONFIG", "URL", "API_KEY", "INSTANCE_UID", "NONCE")
    assert warnings(**{f"TEI_MANAGER_{name}": "x" for name in known}, PATH="/bin") == []


def test_log_level_order():
    assert config(TEI_MANAGER_LOG_LEVEL="debug", LOG_LEVEL="warn", RUST_LOG="error").log_level == "debug"
    assert config(LOG_LEVEL="warn", RUST_LOG="error").log_level == "warn"
    assert config(LOG_LEVEL="loud", RUST_LOG="error").log_level == "error"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/1", "HUGGINGFACE_HUB_CACHE": "/2", "HF_HOME": "/3"}, "/1"),
        ({"HUGGINGFACE_HUB_CACHE": "/2", "HF_HOME": "/3"}, "/2"),
        ({"HF_HOME": "/3", "XDG_CACHE_HOME": "/4"}, "/3/hub"),
        ({"HF_HOME": "~/hf"}, "/home/me/hf/hub"),
        ({"XDG_CACHE_HOME": "/4"}, "/4/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
        ({"TEI_MANAGER__MODEL_CACHE_DIR": "/0", "HF_HUB_CACHE": "/1"}, "/0"),
    ],
)
def test_the_model_cache_folder(environ, folder):
    assert str(config(**environ).model_cache_dir) == folder


def test_every_key_has_a_general_name_that_is_read():
    for key in KEYS:
        if isinstance(key.shape, Boolean | Integer) and key.name not in ("api_port", "grpc_port"):
            for name in key.general_env:
                text = "true" if isinstance(key.shape, Boolean) else str(key.default)
                assert load(None, HOME | {name: text}).origins[key.name] == f"env:{name}", name


@given(st.integers(1, 65535))
def test_integers_round_trip(number):
    assert config(TEI_MANAGER_GRPC_MAX_STREAMS=str(number)).grpc_max_parallel_streams == number


@given(st.booleans(), st.sampled_from(["{}", " {} "]), st.sampled_from([str.lower, str.upper, str.title]))
def test_booleans_round_trip(value, frame, case):
    text = frame.format(case(json.dumps(value)))
    assert config(TEI_MANAGER_GRPC_ENABLED=text).grpc_enabled is value


NAMES = st.sampled_from(
    [name for key in KEYS for name in (*key.env, *key.general_env)]
    + ["TEI_MANAGER__INSTANCES", "TEI_MANAGER__GRPC"]
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["[[]]", "{}", '{"a": {}}', "[{}]", "1", "-1", "9" * 30, "~x/y", "null"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, TEXTS, max_size=4))
def test_no_text_crashes(environ):
    with contextlib.suppress(ConfigProblems):
        load(None, HOME | environ)


def test_the_names_of_the_table_exist():
    assert BY_NAME["grpc_port"].general_env[0] == "TEI_MANAGER__GRPC_PORT"
