"""The command line says what text-embeddings-router's says."""

import pytest

import tei_engine
from tei_engine.server import flags
from tei_engine.server.settings import read_settings


def settings(*argv, **environ):
    return read_settings(["--model-id", "m", *argv], environ)


def refusal(*argv, **environ):
    with pytest.raises(flags.UsageError) as caught:
        settings(*argv, **environ)
    return str(caught.value)


def test_defaults():
    chosen = settings()
    assert (chosen.port, chosen.hostname, chosen.grpc_port, chosen.prometheus_port) == (3000, "0.0.0.0", 0, 0)
    assert (chosen.max_batch_tokens, chosen.max_concurrent_requests, chosen.max_client_batch_size) == (
        16384,
        512,
        32,
    )
    assert (chosen.payload_limit, chosen.run_tokens, chosen.drain_timeout) == (2_000_000, 256, 30)
    assert chosen.auto_truncate is True
    assert chosen.max_batch_requests is None
    assert chosen.served_model_name == "m"


@pytest.mark.parametrize("spelling", [["-p", "81"], ["-p81"], ["-p=81"], ["--port", "81"], ["--port=81"]])
def test_spellings_of_the_port(spelling):
    assert settings(*spelling).port == 81


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--auto-truncate"], True),
        (["--auto-truncate", "false"], False),
        (["--auto-truncate=false"], False),
        (["--auto-truncate", "--json-output"], True),
    ],
)
def test_auto_truncate_may_stand_alone(argv, value):
    assert settings(*argv).auto_truncate is value


def test_flags_beat_the_environment_and_empty_means_unset():
    chosen = settings("--port", "1", PORT="2", GRPC_PORT="9", TEI_ENGINE_GRPC_PORT="3", MAX_BATCH_TOKENS="")
    assert (chosen.port, chosen.grpc_port, chosen.max_batch_tokens) == (1, 3, 16384)
    assert settings(AUTO_TRUNCATE="false", JSON_OUTPUT="1").auto_truncate is False


def test_a_host_name_in_the_environment_is_the_containers_own():
    assert settings(HOSTNAME="f00dcafe").hostname == "0.0.0.0"
    assert settings(HOSTNAME="127.0.0.2").hostname == "127.0.0.2"
    assert settings("--hostname", "localhost").hostname == "localhost"


def test_model_sources_repeat_and_come_as_lines():
    chosen = settings("--model-source", "a/b=python:p/x=y", "--model-source", "c=/d")
    assert chosen.model_sources == {"a/b": "python:p/x=y", "c": "/d"}
    assert settings(TEI_ENGINE_MODEL_SOURCE="a=b\nc=d").model_sources == {"a": "b", "c": "d"}


def test_the_cache_folders_of_the_environment_have_their_own_order():
    assert settings(HUGGINGFACE_HUB_CACHE="/x").huggingface_hub_cache is None
    assert settings("--huggingface-hub-cache", "/y").huggingface_hub_cache == "/y"


def test_offline_in_its_three_spellings():
    assert settings("--offline").offline
    assert settings(HF_HUB_OFFLINE="1").offline
    assert settings(TRANSFORMERS_OFFLINE="1").offline
    assert not settings(HF_HUB_OFFLINE="0").offline


def test_what_is_adjusted_is_said():
    chosen = settings("--max-client-batch-size", "600", "--dtype", "float16")
    assert chosen.max_concurrent_requests == 600
    assert len(chosen.warnings) == 2


def test_accepted_and_unused():
    settings("--uds-path", "/x", "--disable-spans", "--otlp-service-name", "x", "--otlp-endpoint", "http://x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port"], "a value is required for '--port <PORT>' but none was supplied"),
        (["--port", "--json-output"], "a value is required for '--port <PORT>' but none was supplied"),
        (["--port", "70000"], "invalid value '70000' for '--port <PORT>': 70000 is not in 0..=65535"),
        (["--json-output=true"], "unexpected value 'true' for '--json-output' found; no more were expected"),
        (["--json-output", "--json-output"], "the argument '--json-output' cannot be used multiple times"),
        (["stray"], "unexpected argument 'stray' found"),
        (["--por", "1"], "unexpected argument '--por' found"),
        (["--max_batch_tokens", "1"], "unexpected argument '--max_batch_tokens' found"),
        (["--api-key", ""], "invalid value '' for '--api-key <API_KEY>': must not be empty"),
        (
            ["--default-prompt", "a", "--default-prompt-name", "b"],
            "the argument '--default-prompt-name <DEFAULT_PROMPT_NAME>' cannot be used with "
            "'--default-prompt <DEFAULT_PROMPT>'",
        ),
    ],
)
def test_wrong_arguments(argv, message):
    assert refusal(*argv) == message


@pytest.mark.parametrize(
    "argv",
    [
        ["--backend", "openvino"],
        ["--cuda-allow-tf32"],
    ],
    ids=lambda argv: argv[0],
)
def test_what_is_not_there_yet_is_refused_not_ignored(argv):
    assert "not available in this version" in refusal(*argv)


def test_every_flag_is_in_the_help_text_once():
    text = flags.help_text()
    for flag in flags.FLAGS:
        assert text.count(f"{flag.usage}\n") == 1


def test_the_version_is_the_projects(pytestconfig):
    assert f'version = "{tei_engine.__version__}"' in (pytestconfig.rootpath / "pyproject.toml").read_text()
