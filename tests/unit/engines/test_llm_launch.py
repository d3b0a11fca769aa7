"""argv and environment of vLLM and llama.cpp's server, as written, and what they are refused."""

from __future__ import annotations

import pytest

from tei_manager.domain.instance import EngineKind, InstanceSpec, Ports, Protocol
from tei_manager.engines.base import Ask, Launch, Probe, Refusal, Surroundings
from tei_manager.engines.catalog import ENGINES, api_key
from tei_manager.engines.llamacpp import MOST_SLOTS

VLLM, LLAMACPP = ENGINES[EngineKind.VLLM], ENGINES[EngineKind.LLAMACPP]
PORTS = Ports(main=8080)


def vllm(**changes: object) -> InstanceSpec:
    return InstanceSpec(name="llm", model_id="Qwen/Qwen3-0.6B", engine=EngineKind.VLLM).with_(**changes)


def llamacpp(**changes: object) -> InstanceSpec:
    return InstanceSpec(name="gguf", model_id="org/model-GGUF:Q8_0", engine=EngineKind.LLAMACPP).with_(**changes)


def around(program: str | tuple[str, ...] = ("vllm", "serve"), **changes: object) -> Surroundings:
    values: dict[str, object] = {"host": "127.0.0.1", "program": program, "version": None, "environ": {}}
    return Surroundings(**{**values, **changes})


def launched(wanted: InstanceSpec, **changes: object) -> Launch:
    launch = ENGINES[wanted.engine].launch(wanted, PORTS, place(wanted, **changes))
    assert isinstance(launch, Launch), launch
    return launch


def place(wanted: InstanceSpec, **changes: object) -> Surroundings:
    return around(
        **{"program": ("vllm", "serve") if wanted.engine is EngineKind.VLLM else "llama-server", **changes}
    )


def refused(wanted: InstanceSpec, **changes: object) -> list[tuple[str, str]]:
    refusal = ENGINES[wanted.engine].launch(wanted, PORTS, place(wanted, **changes))
    assert isinstance(refusal, Refusal), refusal
    return [(problem.path, problem.code) for problem in refusal.problems]


def messages(wanted: InstanceSpec, **changes: object) -> str:
    refusal = ENGINES[wanted.engine].launch(wanted, PORTS, place(wanted, **changes))
    assert isinstance(refusal, Refusal), refusal
    return " ".join(problem.message for problem in refusal.problems)


# --- vLLM ----------------------------------------------------------------------------------------------------

VLLM_BASE = (
    *("vllm", "serve", "Qwen/Qwen3-0.6B", "--host", "127.0.0.1", "--port", "8080"),
    *("--served-model-name", "Qwen/Qwen3-0.6B", "--max-num-batched-tokens", "16384", "--max-num-seqs", "512"),
)


def test_argv_of_vllm():
    assert launched(vllm()).argv == (*VLLM_BASE, "--uvicorn-log-level", "warning")
    assert launched(vllm()).env == {}


def test_argv_of_vllm_with_everything_set():
    wanted = vllm(
        revision="main",
        dtype="bfloat16",
        pooling="last-token",
        max_batch_tokens=4096,
        max_concurrent_requests=32,
        log_level="debug",
        extra_args=(
            "-tp",
            "2",
            "--max_model_len=16k",
            "--hf-overrides.a_b",
            "-1",
            "--lora-modules",
            "a=/a",
            "b=/b",
        ),
    )
    assert launched(wanted).argv == (
        *("vllm", "serve", "Qwen/Qwen3-0.6B", "--host", "127.0.0.1", "--port", "8080"),
        *("--served-model-name", "Qwen/Qwen3-0.6B", "--max-num-batched-tokens", "4096", "--max-num-seqs", "32"),
        *("--revision", "main", "--dtype", "bfloat16", "--runner", "pooling"),
        *("--pooler-config", '{"pooling_type": "LAST"}'),
        *("-tp", "2", "--max_model_len=16k", "--hf-overrides.a_b", "-1", "--lora-modules", "a=/a", "b=/b"),
    )


def test_environment_of_vllm_with_everything_set():
    environ = {
        **{"PATH": "/usr/bin", "VLLM_USE_V1": "1", "CUDA_HOME": "/cuda", "HF_TOKEN": "hf_abcd", "HF_HOME": "/hf"},
        **dict.fromkeys(("VLLM_API_KEY", "VLLM_PORT", "VLLM_HOST_IP", "VLLM_MAX_NUM_SEQS", "VLLM_IMAGE"), "x"),
        **dict.fromkeys(("TEI_MANAGER_API_PORT", "OPENAI_API_KEY", "JWT_SECRET_KEY"), "x"),
    }
    wanted = vllm(
        extra_args=("--api-key", "swordfish"), env={"VLLM_USE_V1": "0"}, log_level="debug", gpu_ids=(1, 0)
    )
    launch = launched(wanted, environ=environ, model_cache_dir="/cache", gpu_uuids=("GPU-a", "GPU-b"))
    assert launch.env == {
        "PATH": "/usr/bin",
        "VLLM_USE_V1": "0",
        "CUDA_HOME": "/cuda",
        "HF_TOKEN": "hf_abcd",
        "HF_HOME": "/hf",
        "HUGGINGFACE_HUB_CACHE": "/cache",
        "HF_HUB_CACHE": "/cache",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a",
        "VLLM_API_KEY": "swordfish",
    }
    assert launch.secrets == ("swordfish", "hf_abcd")
    assert "swordfish" not in " ".join(launch.argv)


@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("0.9.2", ("--task", "embed", "--override-pooler-config")),
        ("0.10.1.1", ("--runner", "pooling", "--override-pooler-config")),
        ("0.11.0rc2.dev3+gabc", ("--runner", "pooling", "--pooler-config")),
        ("vllm 0.12.0", ("--runner", "pooling", "--pooler-config")),
        ("Python 3.11.9", ("--runner", "pooling", "--pooler-config")),
        ("INFO 10-05 12:00:00 [__init__.py:216] detected 1.2.3", ("--runner", "pooling", "--pooler-config")),
    ],
)
def test_pooling_is_said_as_each_release_of_vllm_wants_it(version, flags):
    argv = launched(vllm(pooling="cls"), version=version).argv
    assert argv[-6:] == (*flags, '{"pooling_type": "CLS"}', "--uvicorn-log-level", "warning")


def test_what_a_person_says_of_pooling_and_logs_is_not_said_twice():
    argv = launched(vllm(pooling="cls", extra_args=("--runner", "generate"))).argv
    assert argv.count("--runner") == 1
    assert "warning" not in launched(vllm(extra_args=("--disable-uvicorn-access-log",))).argv
    for flag in ("--pooler-config={}", "--override_pooler_config={}"):
        assert refused(vllm(pooling="cls", extra_args=(flag,))) == [("extra_args[0]", "DUPLICATE_FLAG")]
        assert flag.partition("=")[0].replace("_", "-") in launched(vllm(extra_args=(flag,))).argv
    assert refused(vllm(pooling="splade")) == [("pooling", "VALIDATION_ERROR")]


def test_vllm_never_has_more_sequences_than_tokens():
    argv = launched(vllm(max_batch_tokens=100)).argv
    assert argv[argv.index("--max-num-seqs") + 1] == "100"


@pytest.mark.parametrize(
    "flags",
    [
        *[("--port", "1"), ("--port=1",), ("--por", "1"), ("--PORT=1",), ("--host", "0.0.0.0"), ("--model", "x")],
        *[("--mod=x",), ("--served_model_name", "a", "b"), ("--served", "a"), ("--max-num-batched-tokens", "1")],
        *[("--max_num_seqs=1",), ("--max-num-b", "1"), ("--max-num", "1"), ("--config", "x"), ("--conf=x",)],
        *[
            ("--device", "cpu"),
            ("--enable-sleep-mode",),
            ("--enable-sl",),
            ("--uds", "/x"),
            ("--ssl-keyfile", "x"),
        ],
        *[("--headless",), ("--omni",), ("--config.port", "1")],
    ],
)
def test_managed_flags_of_vllm_are_refused_in_every_spelling(flags):
    assert refused(vllm(extra_args=flags)) == [("extra_args[0]", "MANAGED_FLAG")]


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--dtype", "float16"), "dtype", "float16"),
        (("--dtype=half",), "dtype", "float16"),
        (("--dtype", "float"), "dtype", "float32"),
        (("--dtype", "auto"), "dtype", None),
        (("--revision", "v1"), "revision", "v1"),
    ],
)
def test_flags_of_vllm_are_lifted_into_fields(flags, field, value):
    checked, problems = VLLM.check(vllm(extra_args=flags))
    assert problems == ()
    assert getattr(checked, field) == value
    assert checked.extra_args == ()
    assert VLLM.check(checked) == (checked, ())


def test_a_lifted_flag_must_agree_with_its_field_and_be_written_in_full():
    assert VLLM.check(vllm(dtype="float16", extra_args=("--dtype", "half")))[1] == ()
    for other in ("bfloat16", "auto"):
        assert refused(vllm(dtype="float16", extra_args=("--dtype", other))) == [("dtype", "DUPLICATE_FLAG")]
    assert refused(vllm(extra_args=("--dtype", "int8"))) == [("extra_args[0]", "VALIDATION_ERROR")]
    # a secret under half a name would stay on argv
    assert refused(vllm(extra_args=("--dty", "half", "--api-k", "x"))) == [
        ("extra_args[0]", "INVALID_CONFIG"),
        ("extra_args[2]", "INVALID_CONFIG"),
    ]


def test_repeated_flags_of_vllm():
    assert refused(vllm(extra_args=("-tp", "2", "--tensor_parallel_size=4"))) == [
        ("extra_args[2]", "DUPLICATE_FLAG")
    ]
    twice = ("--x.list+", "a", "--x.list+", "b", "--middleware", "m", "--middleware", "n")
    assert launched(vllm(extra_args=twice)).argv[-8:] == twice
    assert refused(vllm(extra_args=("--help=all",))) == [("extra_args[0]", "INVALID_CONFIG")]
    assert refused(vllm(extra_args=("lonely", "--seed", "1"))) == [("extra_args[0]", "INVALID_CONFIG")]


def test_vllm_serves_a_mapped_model_under_its_id():
    sources = {"Qwen/Qwen3-0.6B": "/models/qwen"}
    argv = launched(vllm(), model_sources=sources, resolved_model="/models/qwen").argv
    assert argv[:3] == ("vllm", "serve", "/models/qwen")
    assert argv[argv.index("--served-model-name") + 1] == "Qwen/Qwen3-0.6B"
    missing = launched(vllm(), model_sources=sources)
    assert missing.argv[2] == "Qwen/Qwen3-0.6B"
    assert missing.warnings == ("/models/qwen is not there: 'Qwen/Qwen3-0.6B' is asked for",)
    assert refused(vllm(model_id="python:nothing/here")) == [("model_id", "INVALID_MODEL_ID")]


@pytest.mark.parametrize("wanted", [vllm(), llamacpp()])
def test_both_speak_http_on_one_port(wanted):
    engine = ENGINES[wanted.engine]
    assert (engine.has_second_port, engine.has_metrics_port) == (False, False)
    assert refused(wanted.with_(protocol=Protocol.GRPC)) == [("protocol", "VALIDATION_ERROR")]
    assert refused(wanted.with_(prometheus_port=9100)) == [("prometheus_port", "INVALID_PORT")]
    assert engine.check(wanted.with_(protocol=Protocol.HTTP, prometheus_port=0))[1] == ()
    health = Probe(Ask.HTTP_HEALTH, 8080)
    assert tuple(engine.readiness(wanted, PORTS, Protocol.UNKNOWN)) == ((Protocol.HTTP, health),)
    assert engine.liveness(wanted, PORTS, Protocol.HTTP) == health
    assert engine.warm_up(wanted, PORTS, Protocol.HTTP) == Probe(
        Ask.OPENAI_WARM_UP, 8080, "/v1/embeddings", wanted.model_id
    )
    assert engine.info(wanted, PORTS, Protocol.HTTP) is None


@pytest.mark.parametrize(("wanted", "name"), [(vllm(), "VLLM_API_KEY"), (llamacpp(), "LLAMA_API_KEY")])
def test_keys_are_found_where_the_engines_read_them(wanted, name):
    checked, problems = ENGINES[wanted.engine].check(wanted.with_(extra_args=("--api-key", "swordfish")))
    assert (checked.env, checked.extra_args, problems) == ({name: "swordfish"}, (), ())
    assert api_key(checked) == "swordfish"
    assert api_key(wanted) is None
    assert refused(wanted.with_(env={name: ""})) == [(f"env.{name}", "INVALID_CONFIG")]
    assert refused(wanted.with_(env={name: "other"}, extra_args=("--api-key", "x"))) == [
        (f"env.{name}", "DUPLICATE_FLAG")
    ]


def test_any_of_several_keys_of_llamacpp_will_do():
    assert api_key(llamacpp(env={"LLAMA_API_KEY": "one,two"})) == "one"


@pytest.mark.parametrize("wanted", [vllm(gpu_ids=()), llamacpp(gpu_ids=())])
def test_no_gpu_is_an_empty_list_of_devices(wanted):
    assert launched(wanted).env == {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


# --- llama.cpp -----------------------------------------------------------------------------------------------

LLAMA_BASE = ("--host", "127.0.0.1", "--port", "8080", "--alias", "org/model-GGUF:Q8_0", "--batch-size", "16384")


def test_argv_of_llamacpp():
    launch = launched(llamacpp())
    assert launch.argv == ("llama-server", "--hf-repo", "org/model-GGUF:Q8_0", *LLAMA_BASE)
    assert launch.env == {}


def test_argv_and_environment_of_llamacpp_with_everything_set():
    wanted = llamacpp(
        pooling="last-token",
        max_batch_tokens=2048,
        max_concurrent_requests=8,
        log_level="warn",
        gpu_id=1,
        extra_args=("-c", "4096", "--cache_ram", "-1", "--predict", "-1", "-ngl=99", "-hft", "hf_abcd"),
        env={"LLAMA_CACHE": "/llama"},
    )
    environ = {
        **dict.fromkeys(("LLAMA_ARG_PORT", "LLAMA_ARG_HF_REPO", "LLAMA_API_KEY", "LLAMA_OFFLINE"), "x"),
        **{"PATH": "/usr/bin", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "TEI_MANAGER_NONCE": "x"},
    }
    launch = launched(wanted, environ=environ, model_cache_dir="/cache", gpu_uuids=("GPU-a", "GPU-b"))
    assert launch.argv == (
        *("llama-server", "--hf-repo", "org/model-GGUF:Q8_0", "--offline", "--host", "127.0.0.1"),
        *("--port", "8080", "--alias", "org/model-GGUF:Q8_0", "--batch-size", "2048", "--ubatch-size", "2048"),
        *("--parallel", "8", "--embedding", "--pooling", "last", "--log-verbosity", "2"),
        *("-c", "4096", "--cache_ram", "-1", "--predict", "-1", "-ngl", "99"),
    )
    assert launch.env == {
        "PATH": "/usr/bin",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_abcd",
        "HUGGINGFACE_HUB_CACHE": "/cache",
        "HF_HUB_CACHE": "/cache",
        "CUDA_VISIBLE_DEVICES": "GPU-b",
        "LLAMA_CACHE": "/llama",
    }


def test_whole_inputs_need_whole_batches_where_nothing_is_generated():
    for flag in ("--embedding", "--embeddings", "--rerank", "--reranking"):
        argv = launched(llamacpp(extra_args=(flag,))).argv
        assert argv[argv.index("--ubatch-size") + 1] == "16384"
    argv = launched(llamacpp(pooling="mean", extra_args=("--embeddings",))).argv
    assert argv.count("--embedding") == 1


def test_llamacpp_chooses_its_slots_where_more_are_wanted_than_it_can_have():
    assert "--parallel" not in launched(llamacpp(max_concurrent_requests=MOST_SLOTS + 1)).argv
    argv = launched(llamacpp(max_concurrent_requests=MOST_SLOTS)).argv
    assert argv[argv.index("--parallel") + 1] == str(MOST_SLOTS)


@pytest.mark.parametrize(
    "flags",
    [
        *[("-m", "x"), ("--model=x",), ("-hf", "a/b"), ("-hfr", "a/b"), ("--hf_repo", "a/b"), ("-hff", "x")],
        *[("--host", "x"), ("--port", "1"), ("--PORT", "1"), ("-a", "x"), ("--alias", "x"), ("-np", "1")],
        *[("--parallel=1",), ("-b", "1"), ("-ub", "1"), ("--ubatch-size", "1"), ("-dev", "none"), ("-dr", "x")],
        *[("--api-prefix", "/x"), ("--models-dir", "/x"), ("--ssl-key-file", "x"), ("--api-key-file", "x")],
        *[("--list-devices",), ("-cl",), ("--paral", "1"), ("--sleep-idle-seconds", "5")],
    ],
)
def test_managed_flags_of_llamacpp_are_refused_in_every_spelling(flags):
    assert refused(llamacpp(extra_args=flags)) == [("extra_args[0]", "MANAGED_FLAG")]


def test_llamacpp_gets_two_tokens_per_flag():
    argv = launched(
        llamacpp(extra_args=("--ctx-size=4096", "--jinja", "--temp=0", "--lora=a", "--lora", "b"))
    ).argv
    assert argv[-9:] == ("--ctx-size", "4096", "--jinja", "--temp", "0", "--lora", "a", "--lora", "b")


def test_pooling_of_llamacpp_is_lifted():
    checked, problems = LLAMACPP.check(llamacpp(extra_args=("--pooling", "last")))
    assert (checked.pooling, checked.extra_args, problems) == ("last-token", (), ())
    assert refused(llamacpp(pooling="splade")) == [("pooling", "VALIDATION_ERROR")]
    assert refused(llamacpp(extra_args=("--pooling", "rank"))) == [("extra_args[0]", "VALIDATION_ERROR")]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"revision": "main"}, "revision"),
        ({"log_level": "loud"}, "log_level"),
        ({"log_level": "info", "extra_args": ("-lv", "4")}, "log_level"),
        ({"model_id": "gpt2"}, "model_id"),
    ],
)
def test_fields_that_llamacpp_cannot_have(changes, path):
    assert [where for where, _ in refused(llamacpp(**changes))] == [path]


FILES = ("a-Q4_K_M.gguf", "big/a-Q8_0-00001-of-00002.gguf", "big/a-Q8_0-00002-of-00002.gguf", "mmproj-a.gguf")


@pytest.mark.parametrize(
    ("model_id", "files", "file"),
    [
        ("/models/a", ("a.gguf", "mmproj-F16.gguf"), "/models/a/a.gguf"),
        ("python:package/a", ("a.gguf",), "/models/a/a.gguf"),
        ("org/a", ("a.gguf",), "/models/a/a.gguf"),
        ("org/a:q4_k_m", FILES, "/models/a/a-Q4_K_M.gguf"),
        ("org/a:Q8_0", FILES, "/models/a/big/a-Q8_0-00001-of-00002.gguf"),
        ("/elsewhere/b.gguf", (), "/elsewhere/b.gguf"),
    ],
)
def test_the_file_of_a_local_model(model_id, files, file):
    found = {"model_sources": {"org/a": "/models/a"}, "resolved_model": "/models/a", "model_files": files}
    argv = launched(llamacpp(model_id=model_id), environ={"HF_HUB_OFFLINE": "1"}, **found).argv
    assert argv[1:3] == ("--model", file)
    assert "--offline" not in argv
    assert argv[argv.index("--alias") + 1] == model_id


@pytest.mark.parametrize(
    ("model_id", "files", "text"),
    [
        ("/models/a", (), "there is no GGUF file in the folder of '/models/a'"),
        ("org/a:Q2_K", FILES, "there is no GGUF file for 'Q2_K' in the folder of 'org/a'"),
        ("org/a", FILES, "add ':QUANT' to the model id: a-Q4_K_M.gguf, big/a-Q8_0-00001-of-00002.gguf"),
        ("/models/a", FILES, "end the model id with the file's name: a-Q4_K_M.gguf"),
    ],
)
def test_a_folder_without_the_one_file(model_id, files, text):
    found = {"model_sources": {"org/a": "/models/a"}, "resolved_model": "/models/a", "model_files": files}
    assert refused(llamacpp(model_id=model_id), **found) == [("model_id", "INVALID_MODEL_ID")]
    assert text in messages(llamacpp(model_id=model_id), **found)


def test_a_model_of_llamacpp_that_is_not_there():
    for model_id in ("/nowhere", "python:nothing/here"):
        assert refused(llamacpp(model_id=model_id)) == [("model_id", "INVALID_MODEL_ID")]
    launch = launched(llamacpp(), model_sources={"org/model-GGUF": "/gone"})
    assert launch.argv[1:3] == ("--hf-repo", "org/model-GGUF:Q8_0")
    assert launch.warnings == ("/gone is not there: 'org/model-GGUF:Q8_0' is asked for",)
