"""Rules A4: how extra arguments are recognised, merged and emitted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.engines.flag_tables import ENGINE, ROUTER
from tei_manager.engines.flags import emit, merge
from tei_manager.engines.version import Version

V19 = Version(1, 9, 3)


def merged(*args: str, version: Version | None = V19, strict: bool = True):
    return merge(args, ROUTER, version, strict=strict)


def problems(*args: str, version: Version | None = V19, strict: bool = True) -> list[tuple[str, str]]:
    return [(problem.path, problem.code) for problem in merged(*args, version=version, strict=strict).problems]


def rest(*args: str, **options: object) -> list[str]:
    found = merged(*args, **options)
    assert found.problems == ()
    return [token for item in found.rest for token in item.emitted()]


@pytest.mark.parametrize(
    "args",
    [
        ("--max-batch-requests", "4"),
        ("--max-batch-requests=4",),
        ("--max_batch_requests", "4"),
        ("--max_batch_requests=4",),
    ],
)
def test_every_spelling_of_a_long_flag_is_emitted_in_one(args):
    assert rest(*args) == ["--max-batch-requests", "4"]


@pytest.mark.parametrize("args", [("-p", "80"), ("-p80",), ("-p=80",), ("--port", "80"), ("--port=80",)])
def test_every_spelling_of_the_port_is_managed(args):
    assert problems(*args) == [("extra_args[0]", "MANAGED_FLAG")]


@pytest.mark.parametrize(
    "name",
    [
        "model-id",
        "hostname",
        "port",
        "max-batch-tokens",
        "max-concurrent-requests",
        "uds-path",
        "max_batch_tokens",
    ],
)
def test_own_flags_are_refused_wherever_they_stand(name):
    assert problems("--max-batch-requests", "4", f"--{name}", "x") == [("extra_args[2]", "MANAGED_FLAG")]


def test_json_output_is_managed_too():
    assert problems("--json-output") == [("extra_args[0]", "MANAGED_FLAG")]


def test_a_value_that_starts_with_a_dash_needs_the_equals_sign():
    assert problems("--default-prompt", "-x") == [
        ("extra_args[0]", "INVALID_CONFIG"),
        ("extra_args[1]", "UNKNOWN_FLAG"),
    ]
    assert rest("--default-prompt=-x") == ["--default-prompt=-x"]


@pytest.mark.parametrize(
    ("args", "value", "left"),
    [
        (("--auto-truncate",), "true", []),
        (("--auto-truncate", "false"), "false", []),
        (("--auto_truncate=true",), "true", []),
        (("--auto-truncate", "--disable-spans"), "true", ["--disable-spans"]),
    ],
)
def test_auto_truncate_becomes_a_variable_in_every_spelling(args, value, left):
    assert merged(*args).env == {"AUTO_TRUNCATE": value}
    assert rest(*args) == left


def test_auto_truncate_takes_only_true_or_false():
    assert problems("--auto-truncate", "maybe") == [("extra_args[1]", "INVALID_CONFIG")]
    assert problems("--auto-truncate=maybe") == [("extra_args[0]", "INVALID_CONFIG")]


@pytest.mark.parametrize(
    "args",
    [("--",), ("word",), ("",), ("-",), ("-h",), ("-V",), ("--help",), ("--version",), ("--disable-spans=true",),
     ("--default-prompt",), ("--max-client-batch-size", "many"), ("--max-client-batch-size=",), ("--=x",)],
)  # fmt: skip
def test_what_is_no_flag_is_refused(args):
    assert problems(*args) == [("extra_args[0]", "INVALID_CONFIG")]


def test_a_switch_takes_no_next_word():
    assert problems("--disable-spans", "true") == [("extra_args[1]", "INVALID_CONFIG")]


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (("--pooling", "last_token"), "pooling", "last-token"),
        (("--dtype=float16",), "dtype", "float16"),
        (("--revision", "refs/pr/4"), "revision", "refs/pr/4"),
        (("--prometheus_port=0",), "prometheus_port", 0),
        (("--prometheus-port", "9321"), "prometheus_port", 9321),
    ],
)
def test_lifted_flags_leave_argv(args, field, value):
    found = merged(*args)
    assert (dict(found.lifted), found.rest, found.kept, found.problems) == ({field: value}, (), (), ())


@pytest.mark.parametrize("args", [("--pooling", "max"), ("--dtype", "int8"), ("--prometheus-port", "80")])
def test_lifted_values_are_checked_like_the_fields(args):
    assert [path for path, _ in problems(*args)] == ["extra_args[0]"]


def test_the_same_flag_twice_keeps_one_with_a_warning_or_is_refused():
    found = merged("--max-batch-requests", "4", "--max_batch_requests=4")
    assert [item.emitted() for item in found.rest] == [("--max-batch-requests", "4")]
    assert found.warnings == ("--max-batch-requests is given twice; once is enough",)
    assert problems("--max-batch-requests", "4", "--max-batch-requests", "5") == [
        ("extra_args[2]", "DUPLICATE_FLAG")
    ]
    assert problems("--pooling", "cls", "--pooling", "mean") == [("extra_args[2]", "DUPLICATE_FLAG")]


def test_cors_origins_all_stay():
    args = (
        "--cors-allow-origin",
        "http://a",
        "--cors-allow-origin",
        "http://b",
        "--cors-allow-origin",
        "http://a",
    )
    assert rest(*args) == list(args)


def test_an_unknown_flag_is_refused_with_the_nearest_one_where_the_table_is_complete():
    (problem,) = merged("--max-batch-request", "4").problems
    assert (problem.code, problem.path, problem.nearest) == ("UNKNOWN_FLAG", "extra_args[0]", "max-batch-requests")


@pytest.mark.parametrize("version", [Version(1, 10), None])
@pytest.mark.parametrize(
    "args", [["--new-thing", "5"], ["--new_thing=5"], ["--new-thing", "--disable-spans"], ["-x", "5"], ["-x5"]]
)
def test_an_unknown_flag_is_passed_verbatim_beyond_the_table(version, args):
    assert rest(*args, version=version, strict=False) == args


@pytest.mark.parametrize(
    ("flag", "old", "new"),
    [
        ("--dense-path", Version(1, 7, 1), Version(1, 8, 0)),
        ("--served-model-name", Version(1, 8, 3), Version(1, 9, 0)),
        ("--prometheus-port", Version(1, 7, 0), Version(1, 7, 1)),
    ],
)
def test_a_flag_newer_than_the_program_names_both_versions(flag, old, new):
    (problem,) = merged(flag, "9100", version=old).problems
    assert (problem.path, problem.code) == ("extra_args[0]", "FLAG_NEEDS_VERSION")
    assert problem.message == f"{flag} needs text-embeddings-router {new}, this is {old}"
    assert merged(flag, "9100", version=new).problems == ()


def test_secrets_leave_argv_and_what_is_kept():
    found = merged("--api-key", "abcd", "--hf-api-token=efgh", "--payload-limit", "1000")
    assert found.secrets == {"API_KEY": "abcd", "HF_TOKEN": "efgh"}
    assert found.env == {"PAYLOAD_LIMIT": "1000"}
    assert found.rest == ()
    assert [item.name for item in found.kept] == ["payload-limit"]


@pytest.mark.parametrize("args", [("--api-key=",), ("--api-key", ""), ("--hf-token=",)])
def test_an_empty_secret_is_refused(args):
    assert problems(*args) == [("extra_args[0]", "INVALID_CONFIG")]


def test_both_names_of_the_hub_token_are_one():
    assert problems("--hf-token", "a", "--hf-api-token", "b") == [("extra_args[2]", "DUPLICATE_FLAG")]


def test_default_prompt_and_its_name_exclude_each_other():
    assert problems("--default-prompt", "q: ", "--default-prompt-name", "query") == [
        ("extra_args[2]", "INVALID_CONFIG")
    ]


def test_our_engine_takes_its_own_flags_besides():
    args = ["--quantize", "int8", "--auto-split", "--run-tokens", "128"]
    found = merge(args, ENGINE, None, strict=True)
    assert [token for item in found.rest for token in item.emitted()] == args
    assert [p.code for p in merged(*args).problems][:1] == ["UNKNOWN_FLAG"]
    managed = merge(
        ["--grpc-port", "1", "--model-source", "a=b", "--drain-timeout", "1"], ENGINE, None, strict=True
    )
    assert [problem.code for problem in managed.problems] == ["MANAGED_FLAG"] * 3


@given(st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True), st.none() | st.text(max_size=8))
def test_emitting_and_reading_agree(name, value):
    tokens = emit(name, value)
    found = merge(tokens, ROUTER, None, strict=False)
    if name not in ROUTER.flags and value is not None and found.problems == ():
        assert [(item.name, item.value) for item in found.rest] == [(ROUTER.aliases.get(name, name), value)]
