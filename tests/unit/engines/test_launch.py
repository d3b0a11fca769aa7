"""argv and environment of every engine, as written."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tei_engine.server import flags as engine_flags
from tei_manager.domain.instance import EngineKind, InstanceSpec, Ports
from tei_manager.engines.base import Launch, Refusal, Surroundings
from tei_manager.engines.catalog import ENGINES, api_key, kind_of
from tei_manager.engines.flag_tables import ENGINE

TEI, EMBEDDED, COMMAND = ENGINES[EngineKind.TEI], ENGINES[EngineKind.EMBEDDED], ENGINES[EngineKind.COMMAND]
PORTS = Ports(main=8080, metrics=9100)
BOTH_PORTS = Ports(main=8080, grpc=8179, metrics=9100)
ROUTER_VERSIONS = ["1.7.0", "1.7.1", "1.8.3", "1.9.3", "1.10.0"]


def spec(**changes: object) -> InstanceSpec:
    return InstanceSpec(name="small", model_id="BAAI/bge-small-en-v1.5", engine=EngineKind.TEI).with_(**changes)


def around(version: str | None = "1.9.3", **changes: object) -> Surroundings:
    text = f"text-embeddings-router {version}" if version else None
    values: dict[str, object] = {"host": "127.0.0.1", "program": "/bin/router", "version": text, "environ": {}}
    return Surroundings(**{**values, **changes})


def launched(engine, wanted: InstanceSpec, ports: Ports, place: Surroundings) -> Launch:
    launch = engine.launch(wanted, ports, place)
    assert isinstance(launch, Launch), launch
    return launch


def refused(engine, wanted: InstanceSpec, place: Surroundings, ports: Ports = PORTS) -> list[tuple[str, str]]:
    refusal = engine.launch(wanted, ports, place)
    assert isinstance(refusal, Refusal), refusal
    return [(problem.path, problem.code) for problem in refusal.problems]


BASE = (
    *("/bin/router", "--model-id", "BAAI/bge-small-en-v1.5", "--hostname", "127.0.0.1", "--port", "8080"),
    *("--max-batch-tokens", "16384", "--max-concurrent-requests", "512", "--json-output"),
)
METRICS = ("--prometheus-port", "9100")


@pytest.mark.parametrize(
    ("version", "argv"),
    [
        ("1.7.0", BASE),
        ("1.7.1", (*BASE, *METRICS)),
        ("1.8.3", (*BASE, *METRICS)),
        ("1.9.3", (*BASE, *METRICS)),
        ("1.10.0", (*BASE, *METRICS)),
        (None, (*BASE, *METRICS)),
    ],
)
def test_argv_of_tei_per_version(version, argv):
    assert launched(TEI, spec(), PORTS, around(version)).argv == argv


def test_argv_of_tei_with_everything_set():
    wanted = spec(
        revision="main",
        dtype="float16",
        pooling="cls",
        max_batch_tokens=1000,
        max_concurrent_requests=100,
        extra_args=("--default-prompt=-x", "--max_client_batch_size", "64", "--auto-truncate", "false"),
    )
    assert launched(TEI, wanted, PORTS, around()).argv == (
        *("/bin/router", "--model-id", "BAAI/bge-small-en-v1.5", "--hostname", "127.0.0.1", "--port", "8080"),
        *("--max-batch-tokens", "1000", "--max-concurrent-requests", "100", "--json-output"),
        *("--revision", "main", "--dtype", "float16", "--pooling", "cls", *METRICS),
        *("--default-prompt=-x", "--max-client-batch-size", "64"),
    )


TEI_ENV = {
    "PATH": "/usr/bin",
    "AUTO_TRUNCATE": "true",
    "PAYLOAD_LIMIT": "67108864",
    "LOG_LEVEL": "info,text_embeddings_router=warn",
}


@pytest.mark.parametrize("version", ROUTER_VERSIONS)
def test_environment_of_tei_per_version(version):
    place = around(version, environ={"PATH": "/usr/bin"})
    assert launched(TEI, spec(), PORTS, place).env == TEI_ENV


def test_environment_of_tei_with_everything_set():
    environ = {
        **dict.fromkeys(("PORT", "HOSTNAME", "API_KEY", "MODEL_ID", "POOLING", "TASK", "LOG_LEVEL"), "x"),
        **dict.fromkeys(("PROMETHEUS_PORT", "UDS_PATH", "AIP_HTTP_PORT", "GRPC_MAX_PARALLEL_STREAM_REQUESTS"), ""),
        **dict.fromkeys(("TEI_MANAGER_API_PORT", "TEI_ENGINE_BACKEND", "OPENAI_API_KEY", "CO_API_KEY"), "x"),
        **dict.fromkeys(("GEMINI_API_KEY", "HUGGINGFACE_API_KEY", "JWT_SECRET_KEY", "HF_API_TOKEN"), "hf_abcd"),
        **{"HF_HOME": "/hf", "HF_HUB_OFFLINE": "1", "https_proxy": "http://p", "OMP_NUM_THREADS": "2"},
    }
    wanted = spec(extra_args=("--payload-limit", "1000", "--api-key", "swordfish"), env={"OMP_NUM_THREADS": "4"})
    place = around(environ=environ, model_cache_dir="/cache", cpus=16, run_dir="/run/tei/")
    launch = launched(TEI, wanted, PORTS, place)
    assert launch.env == {
        "HF_TOKEN": "hf_abcd",
        "HF_HOME": "/hf",
        "HF_HUB_OFFLINE": "1",
        "https_proxy": "http://p",
        "OMP_NUM_THREADS": "4",
        "HUGGINGFACE_HUB_CACHE": "/cache",
        "AUTO_TRUNCATE": "true",
        "PAYLOAD_LIMIT": "1000",
        "TOKENIZATION_WORKERS": "8",
        "UDS_PATH": "/run/tei/small.sock",
        "API_KEY": "swordfish",
        "LOG_LEVEL": "info,text_embeddings_router=warn",
    }
    assert "swordfish" not in " ".join(launch.argv)
    assert launch.secrets == ("swordfish", "hf_abcd")


def test_the_hub_token_is_inherited_and_beats_its_older_name():
    place = around(environ={"HF_TOKEN": "new", "HF_API_TOKEN": "old"})
    assert launched(TEI, spec(), PORTS, place).env["HF_TOKEN"] == "new"
    assert "HF_TOKEN" not in launched(TEI, spec(), PORTS, around(environ={"HF_TOKEN": ""})).env


def test_a_key_holds_the_line_back_that_prints_it_at_any_level():
    wanted = spec(log_level="debug", env={"API_KEY": "swordfish"})
    assert launched(TEI, wanted, PORTS, around()).env["LOG_LEVEL"] == "debug,text_embeddings_router=warn"
    assert launched(TEI, spec(log_level="debug"), PORTS, around()).env["LOG_LEVEL"] == "debug"


def test_concurrency_is_raised_to_one_client_batch():
    def permits(**changes: object) -> str:
        argv = launched(TEI, spec(**changes), PORTS, around()).argv
        return argv[argv.index("--max-concurrent-requests") + 1]

    assert permits(max_concurrent_requests=8) == "32"
    assert permits(max_concurrent_requests=8, extra_args=("--max-client-batch-size", "4")) == "8"
    assert permits(max_concurrent_requests=40, extra_args=("--max-client-batch-size=64",)) == "64"


# --- versions ------------------------------------------------------------------------------------------------


def test_a_program_that_is_too_old_is_refused():
    refusal = TEI.launch(spec(), PORTS, around("1.6.1"))
    assert isinstance(refusal, Refusal)
    assert refusal.problems[0].message == "TEI 1.6.1 is not supported (need 1.7 to 1.9)"


@pytest.mark.parametrize("version", ["1.10.0", "2.0.0", None])
def test_a_newer_or_unreadable_program_is_started_with_a_warning_and_takes_unknown_flags(version):
    launch = launched(TEI, spec(extra_args=("--brand-new", "1")), PORTS, around(version))
    assert len(launch.warnings) == 1
    assert launch.argv[-2:] == ("--brand-new", "1")


@pytest.mark.parametrize("version", ["1.7.1", "1.8.3", "1.9.3", "1.9.9"])
def test_a_known_program_refuses_unknown_flags(version):
    assert refused(TEI, spec(extra_args=("--brand-new", "1")), around(version)) == [
        ("extra_args[0]", "UNKNOWN_FLAG")
    ]
    assert launched(TEI, spec(), PORTS, around(version)).warnings == ()


def test_flags_are_gated_by_version():
    wanted = spec(extra_args=("--dense-path", "2_Dense"))
    assert refused(TEI, wanted, around("1.7.1")) == [("extra_args[0]", "FLAG_NEEDS_VERSION")]
    assert launched(TEI, wanted, PORTS, around("1.8.0")).argv[-2:] == ("--dense-path", "2_Dense")


# --- models --------------------------------------------------------------------------------------------------

SOURCE = {"BAAI/bge-small-en-v1.5": "python:some_package/model"}


def test_tei_gets_the_folder_of_a_mapped_model_and_serves_it_under_its_id():
    place = around("1.9.3", model_sources=SOURCE, resolved_model="/site/some_package/model")
    argv = launched(TEI, spec(), PORTS, place).argv
    assert argv[1:3] == ("--model-id", "/site/some_package/model")
    assert argv[-2:] == ("--served-model-name", "BAAI/bge-small-en-v1.5")
    mine = launched(TEI, spec(extra_args=("--served-model-name=mine",)), PORTS, place).argv
    assert mine[-2:] == ("--served-model-name", "mine")
    assert mine.count("--served-model-name") == 1
    older = launched(TEI, spec(), PORTS, dataclasses.replace(place, version="text-embeddings-router 1.8.3"))
    assert "--served-model-name" not in older.argv


def test_tei_cannot_have_a_python_model_that_is_not_there():
    wanted = spec(model_id="python:nothing/here")
    assert refused(TEI, wanted, around()) == [("model_id", "INVALID_MODEL_ID")]
    assert launched(TEI, wanted, PORTS, around(resolved_model="/x")).argv[2] == "/x"


def test_a_mapped_model_that_is_not_there_is_asked_for_by_its_id():
    launch = launched(TEI, spec(), PORTS, around(model_sources=SOURCE))
    assert launch.argv[2] == "BAAI/bge-small-en-v1.5"
    assert len(launch.warnings) == 1


def test_a_hub_id_is_not_taken_for_a_folder_that_happens_to_exist():
    assert launched(TEI, spec(), PORTS, around(resolved_model="/cwd/BAAI/x")).argv[2] == "BAAI/bge-small-en-v1.5"


# --- the seed's bugs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ROUTER_VERSIONS[1:])
@pytest.mark.parametrize(
    "args", [(), ("--prometheus-port", "0"), ("--prometheus-port=0",), ("--prometheus_port", "0")]
)
def test_seed_bug_prometheus_port_is_passed_exactly_once(version, args):
    wanted, problems = TEI.check(spec(extra_args=args))
    assert problems == ()
    assert wanted.extra_args == ()
    assert wanted.prometheus_port == (0 if args else None)
    argv = launched(TEI, wanted, Ports(main=8080, metrics=wanted.prometheus_port), around(version)).argv
    assert sum(token.startswith("--prometheus-port") for token in argv) == 1
    assert argv[-2:] == ("--prometheus-port", "0")


def test_seed_bug_prometheus_port_in_field_and_flag_must_agree():
    wanted = spec(prometheus_port=9200, extra_args=("--prometheus-port", "9200"))
    assert TEI.check(wanted) == (spec(prometheus_port=9200), ())
    _, problems = TEI.check(wanted.with_(prometheus_port=9201))
    assert [problem.code for problem in problems] == ["DUPLICATE_FLAG"]


def test_seed_bug_gpu_id_is_respected():
    env = launched(TEI, spec(gpu_id=0), PORTS, around()).env
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")


def test_seed_dtype_in_extra_args_works():
    argv = launched(TEI, spec(extra_args=("--dtype", "float16")), PORTS, around()).argv
    assert argv[-4:] == ("--dtype", "float16", *METRICS)


# --- checking ------------------------------------------------------------------------------------------------


def test_checking_moves_secrets_out_of_sight_and_keeps_the_rest():
    wanted = spec(extra_args=("--api-key=swordfish", "--auto_truncate", "--max-batch-requests=4"), env={"A": "1"})
    checked, problems = TEI.check(wanted)
    assert problems == ()
    assert checked.extra_args == ("--auto_truncate", "--max-batch-requests=4")
    assert checked.env == {"A": "1", "API_KEY": "swordfish"}
    assert api_key(checked) == "swordfish"
    assert TEI.check(checked) == (checked, ())


def test_checking_leaves_the_version_to_the_launch_unless_it_is_known():
    wanted = spec(extra_args=("--brand-new", "1"))
    assert TEI.check(wanted) == (wanted, ())
    assert [problem.code for problem in TEI.check(wanted, around())[1]] == ["UNKNOWN_FLAG"]


def test_a_flag_and_a_variable_must_agree():
    wanted = spec(
        extra_args=("--api-key", "abcd", "--payload-limit", "1"), env={"API_KEY": "x", "PAYLOAD_LIMIT": "1"}
    )
    assert [problem.path for problem in TEI.check(wanted)[1]] == ["env.API_KEY"]
    assert [problem.path for problem in TEI.check(spec(env={"API_KEY": ""}))[1]] == ["env.API_KEY"]


# --- embedded ------------------------------------------------------------------------------------------------


def embedded(**changes: object) -> InstanceSpec:
    return spec(engine=EngineKind.EMBEDDED, **changes)


def test_argv_of_the_embedded_engine():
    place = around(None, program=("/bin/python", "-m", "engine"), model_sources=SOURCE, cpu_threads=3)
    wanted = embedded(pooling="cls", extra_args=("--intra-op-threads", "1", "--offline"))
    assert launched(EMBEDDED, wanted, BOTH_PORTS, place).argv == (
        *("/bin/python", "-m", "engine", *BASE[1:], "--pooling", "cls", *METRICS),
        *("--grpc-port", "8179", "--drain-timeout", "28"),
        *("--model-source", "BAAI/bge-small-en-v1.5=python:some_package/model", "--compute-workers", "3"),
        *("--intra-op-threads", "1", "--offline"),
    )


def test_environment_of_the_embedded_engine():
    place = around(None, environ={"PATH": "/usr/bin", "HF_HUB_CACHE": "/other"}, model_cache_dir="/cache", cpus=64)
    assert launched(EMBEDDED, embedded(), BOTH_PORTS, place).env == {
        **TEI_ENV,
        "HUGGINGFACE_HUB_CACHE": "/cache",
        "HF_HUB_CACHE": "/cache",
    }


@pytest.mark.parametrize(("grace", "drain"), [(30.0, "28"), (2.5, "1"), (0.0, "1"), (10.9, "8")])
def test_the_embedded_engine_drains_before_it_would_be_killed(grace, drain):
    argv = launched(EMBEDDED, embedded(), BOTH_PORTS, around(stop_grace_secs=grace)).argv
    assert argv[argv.index("--drain-timeout") + 1] == drain


@pytest.mark.parametrize("changes", [{"gpu_id": 0}, {"gpu_ids": (0, 1)}, {"gpu_id": "GPU-abc"}])
def test_the_embedded_engine_cannot_be_pinned(changes):
    code = ("INVALID_GPU_ID",)
    assert tuple(problem.code for problem in EMBEDDED.check(embedded(**changes))[1]) == code
    assert EMBEDDED.check(embedded(gpu_ids=()))[1] == ()


def test_the_embedded_engine_takes_what_we_pass():
    assert {flag.name for flag in engine_flags.FLAGS} == {*ENGINE.flags, *ENGINE.aliases}
    place = around(model_sources=SOURCE, cpu_threads=2, model_cache_dir="/cache")
    launch = launched(EMBEDDED, embedded(extra_args=("--auto-truncate", "false")), BOTH_PORTS, place)
    values = engine_flags.parse(launch.argv[1:], launch.env)
    assert (values["grpc_port"], values["auto_truncate"], values["payload_limit"]) == (8179, False, 67108864)


def test_a_router_that_is_our_engine_is_driven_as_such():
    assert kind_of("tei-engine 0.1.0 (text-embeddings-router 1.9.3)") is EngineKind.EMBEDDED
    assert kind_of("text-embeddings-router 1.9.3") is EngineKind.TEI
    assert kind_of(None) is EngineKind.TEI


# --- command -------------------------------------------------------------------------------------------------


def command(*argv: str, **changes: object) -> InstanceSpec:
    return spec(engine=EngineKind.COMMAND, command=argv or None, **changes)


def test_placeholders_are_filled_in_once_without_a_shell():
    wanted = command(
        *("serve", "--at={host}:{port}", "{model_id}", "@{revision}", "{other}", "{{port}}", "$HOME; rm"),
        extra_args=("--port", "{port}"),
    )
    place = around(None, host="{port}", program="")
    assert launched(COMMAND, wanted, Ports(main=8080), place).argv == (
        *("serve", "--at={port}:8080", "BAAI/bge-small-en-v1.5", "@", "{other}", "{8080}", "$HOME; rm"),
        *("--port", "{port}"),
    )


def test_a_command_gets_the_folder_of_a_mapped_model():
    place = around(None, model_sources=SOURCE, resolved_model="/m")
    assert launched(COMMAND, command("x", "{port}", "{model_id}"), PORTS, place).argv == ("x", "8080", "/m")


def test_environment_of_a_command_lacks_only_our_own_names():
    environ = {
        "PORT": "1",
        "TEI_MANAGER_API_PORT": "9000",
        "OPENAI_API_KEY": "sk",
        "JWT_SECRET_KEY": "j",
        "A": "1",
    }
    wanted = command("x", "{port}", env={"A": "2"}, gpu_ids=(1,), log_level="debug")
    assert launched(COMMAND, wanted, PORTS, around(None, environ=environ, model_cache_dir="/cache")).env == {
        "PORT": "1",
        "A": "2",
        "HUGGINGFACE_HUB_CACHE": "/cache",
        "LOG_LEVEL": "debug",
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_a_command_without_argv_is_refused():
    assert refused(COMMAND, command(), around(None)) == [("command", "MISSING_FIELD")]


# --- whatever the input --------------------------------------------------------------------------------------

_NAMES = [*sorted(ENGINE.flags), "hf-api-token", "brand-new", "prometheus_port", "served_model_name"]
_VALUES = st.sampled_from(["", "0", "1", "9100", "true", "false", "cls", "mean", "float16", "-x", "main", "word"])
_TOKEN = st.one_of(
    st.builds(lambda name, value: f"--{name}={value}", st.sampled_from(_NAMES), _VALUES),
    st.builds(lambda name: f"--{name}", st.sampled_from(_NAMES)),
    _VALUES,
    st.sampled_from(["-p", "-p80", "-p=80", "-x", "-x5", "-h", "--", "-", "-V"]),
    st.text(alphabet="-_=abp", max_size=6),
)


# one value per flag, so that many of these lists are accepted and repeats reach the merging
_GOOD = {
    **{
        "pooling": "cls",
        "dtype": "float32",
        "revision": "main",
        "prometheus-port": "9100",
        "default-prompt": "-q",
    },
    **{"max-client-batch-size": "64", "max-batch-requests": "4", "served-model-name": "x", "payload-limit": "9"},
    **{"api-key": "swordfish", "hf-token": "abcd", "hf-api-token": "abcd", "auto-truncate": "false"},
    **{"cors-allow-origin": "*", "disable-spans": None, "auto-split": None, "intra-op-threads": "1"},
    **{"offline": None, "brand-new": "1"},
}


def _spelled(name: str, underscored: bool, glued: bool) -> tuple[str, ...]:
    value, flag = _GOOD[name], "--" + (name.replace("-", "_") if underscored else name)
    if value is None:
        return (flag,)
    return (f"{flag}={value}",) if glued or value.startswith("-") else (flag, value)


_PAIRS = st.lists(
    st.builds(_spelled, st.sampled_from(sorted(_GOOD)), st.booleans(), st.booleans()), max_size=6
).map(lambda groups: tuple(token for group in groups for token in group))
_ARGS = st.one_of(_PAIRS, _PAIRS, st.lists(_TOKEN, max_size=8).map(tuple))


def _names(argv: tuple[str, ...]) -> list[str]:
    return [token[2:].partition("=")[0].replace("_", "-") for token in argv if token.startswith("--")]


@settings(max_examples=300, deadline=None)
@given(
    args=_ARGS,
    version=st.sampled_from([*ROUTER_VERSIONS, None]),
    engine=st.sampled_from([TEI, EMBEDDED]),
    mapped=st.booleans(),
    port=st.sampled_from([None, 0, 9100]),
)
def test_no_flag_occurs_twice_whatever_the_extra_arguments(args, version, engine, mapped, port):
    place = around(version, cpu_threads=2, model_sources=SOURCE if mapped else {}, resolved_model="/m")
    launch = engine.launch(spec(extra_args=args, prometheus_port=port), BOTH_PORTS, place)
    if isinstance(launch, Refusal):
        assert launch.problems
        return
    names = [name for name in _names(launch.argv) if name != "cors-allow-origin"]
    assert len(names) == len(set(names))
    assert not {"api-key", "hf-token", "hf-api-token", "auto-truncate", "payload-limit"} & set(names)
    if engine is EMBEDDED:
        assert engine_flags._read_argv(launch.argv[1:])["port"] == ["8080"]


@settings(max_examples=200, deadline=None)
@given(args=_ARGS, engine=st.sampled_from([TEI, EMBEDDED]))
def test_checking_twice_equals_checking_once(args, engine):
    checked, problems = engine.check(spec(extra_args=args))
    if not problems:
        assert engine.check(checked) == (checked, ())
