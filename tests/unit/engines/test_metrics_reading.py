"""Pages of metrics and answers to `/info`, as engines really gave them, and as a hostile one might."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines.base import Ask, Engine, Probe
from tei_manager.engines.command import Command
from tei_manager.engines.embedded import Embedded
from tei_manager.engines.metrics_reading import (
    EngineInfo,
    EngineMetrics,
    Summary,
    read_foreign_metrics,
    read_info,
    read_metrics,
)
from tei_manager.engines.tei import Tei

# recorded after one call of one input, one of three, a rerank the model cannot do, and an empty text
PAGES = Path(__file__).parents[2] / "fixtures" / "engine_pages"
TEI_ENGINE = (PAGES / "tei_engine_metrics.txt").read_text()
TESTING = (PAGES / "testing_engine_metrics.txt").read_text()
INFO = (PAGES / "tei_engine_info.json").read_bytes()
# written after the names that vLLM documents, not recorded: the series that are read, and some that are not
VLLM = """
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a/b{c}"} 6.0
vllm:request_success_total{engine="1",finished_reason="length",model_name="a/b"} 2.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="say \\"hi\\", }"} 1.0
vllm:request_success_total{engine="0",finished_reason="error",model_name="a/b"} 1.0
vllm:request_success_created{engine="0",finished_reason="stop",model_name="a/b"} 1.7600000000e+09
vllm:num_requests_waiting{engine="0",model_name="a/b"} 3.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="a/b"} 4.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="a/b"} 10.0
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="a/b"} 5.0
vllm:e2e_request_latency_seconds_count{engine="0",model_name="a/b"} 10.0 1700000000000
vllm:request_queue_time_seconds_sum{engine="0",model_name="a/b"} 0.25
vllm:request_queue_time_seconds_count{engine="0",model_name="a/b"} 10.0
python_info{implementation="CPython"} 1.0
"""


@pytest.mark.parametrize(
    ("text", "inputs_seen", "tokens"), [(TEI_ENGINE, 4, 16), (TESTING, 6, 13)], ids=["tei-engine", "testing"]
)
def test_a_recorded_page(text: str, inputs_seen: int, tokens: int) -> None:
    metrics = read_metrics(text)
    assert (metrics.queue_size, metrics.inputs_ok, metrics.inputs_seen) == (0, 4, inputs_seen)
    assert {reason: count for reason, count in metrics.failures.items() if count} == {
        "validation": 1,
        "model_type": 1,
    }
    assert metrics.latency.count == metrics.queue.count == metrics.tokenization.count == 2
    assert metrics.inference.count == metrics.batch_tokens.count == 2
    assert metrics.batch_tokens.sum == tokens
    assert 0 < metrics.inference.sum <= metrics.latency.sum < 1
    figures = metrics.figures
    assert (figures.requests, figures.failed, figures.timed, figures.error_rate) == (4, 2, 2, 0.5)
    assert figures.avg_latency_secs == metrics.latency.sum / 2
    # a program of which nothing is known is recognised by its series
    assert read_foreign_metrics(text) == metrics


def test_the_duration_that_was_recorded() -> None:
    assert read_metrics(TEI_ENGINE).latency == Summary(0.002171435, 2)


def test_a_router_that_was_never_called_prints_next_to_nothing() -> None:
    assert read_metrics("") == EngineMetrics()
    assert read_metrics("# TYPE te_queue_size gauge\nte_queue_size 0\n").figures == Figures()


def test_vllm() -> None:
    metrics = read_foreign_metrics(VLLM)
    assert metrics is not None
    assert metrics.failures == {"abort": 1, "error": 1}
    assert (metrics.inputs_ok, metrics.inputs_seen, metrics.queue_size) == (8, 10, 3)
    assert metrics.queue == Summary(0.25, 10)
    assert metrics.figures == Figures(requests=10, failed=2, timed=8, seconds=4.0)
    assert metrics.figures.avg_latency_secs == 0.5


@pytest.mark.parametrize("text", ["", "ok", "<html>te_request_count</html>", "process_cpu_seconds_total 1\n"])
def test_a_page_of_something_else_tells_nothing(text: str) -> None:
    assert read_foreign_metrics(text) is None


@pytest.mark.parametrize(
    "line",
    [
        "te_request_duration_count",
        "te_request_duration_count many",
        "te_request_duration_count NaN",
        "te_request_duration_count -3",
        "te_request_duration_count +Inf",
        "te_request_duration_count 1e300",
        "te_request_duration_count 3 4 5",
        "te_request_duration_count{ 3",
        'te_request_duration_count{a="' + "b" * 5000 + '"} 3',
    ],
)
def test_a_line_without_meaning_is_passed_over(line: str) -> None:
    page = f'{line}\nte_request_duration_sum 1.5\nte_request_failure{{err="x"}} 2\n'
    assert read_metrics(page).figures == Figures(requests=2, failed=2, timed=0, seconds=1.5)


@given(st.text() | st.text(alphabet='te_{}"=\\ \n1.e+-,rqusco', max_size=300))
def test_no_text_is_too_odd(text: str) -> None:
    for page in (text, f"te_request_failure{text}", f"vllm:request_success_total{text}"):
        assert read_metrics(page).figures.error_rate <= 1
        read_foreign_metrics(page)
    read_info(text.encode("utf-8", "surrogatepass"))


def test_the_recorded_info() -> None:
    assert read_info(INFO) == EngineInfo(
        version="0.1.0", model_type="embedding", model_sha=None, model_dtype="float32", max_input_length=64
    )


def test_the_info_of_a_router() -> None:
    body = {
        "model_id": "BAAI/bge-reranker-base",
        "model_sha": "2cfc18c9415c912f9d8155881c133215df768a70",
        "model_dtype": "float16",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": 512,
        "version": "1.8.3",
    }
    assert read_info(json.dumps(body).encode()) == EngineInfo(
        version="1.8.3",
        model_type="reranker",
        model_sha="2cfc18c9415c912f9d8155881c133215df768a70",
        model_dtype="float16",
        max_input_length=512,
    )


@pytest.mark.parametrize("body", [b"", b"ok", b"[1]", b'{"status": "ok"}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_info(body: bytes) -> None:
    assert read_info(body) is None


def test_fields_of_an_info_that_make_no_sense_are_unknown() -> None:
    body = b'{"model_id": "m", "model_type": "bert", "max_input_length": true, "version": 3, "engine": [1]}'
    assert read_info(body) == EngineInfo()


def test_figures_begin_anew_and_never_fall_below_zero() -> None:
    assert (Figures().avg_latency_secs, Figures().error_rate) == (None, 0.0)
    one, two = Figures(3, 1, 2, 0.5), Figures(5, 1, 4, 2.0)
    assert two - one == Figures(2, 0, 2, 1.5)
    assert one + (two - one) == two
    assert one - two == Figures()


ONE, TWO = Ports(main=8080, metrics=9100), Ports(main=8080, grpc=8179, metrics=9100)


def spec(**changes: object) -> InstanceSpec:
    return InstanceSpec(name="a", model_id="m").with_(**changes)


@pytest.mark.parametrize(
    ("engine", "changes", "ports", "seen", "page"),
    [
        (Embedded(), {}, TWO, Protocol.BOTH, (8080, "/metrics")),
        (Tei(), {}, ONE, Protocol.HTTP, (8080, "/metrics")),
        (Tei(), {}, ONE, Protocol.GRPC, (9100, "/")),
        (Tei(), {"protocol": Protocol.GRPC}, Ports(main=8080, metrics=0), Protocol.GRPC, None),
        (Tei(), {}, ONE, Protocol.UNKNOWN, None),
        (Command(), {}, Ports(main=8080), Protocol.HTTP, (8080, "/metrics")),
        (Command(), {"protocol": Protocol.GRPC}, Ports(main=8080), Protocol.GRPC, None),
    ],
)
def test_where_an_engine_counts(
    engine: Engine, changes: dict[str, object], ports: Ports, seen: Protocol, page: tuple[int, str] | None
) -> None:
    found = engine.metrics(spec(**changes), ports, seen)
    assert (found and (found.port, found.path)) == page


def test_where_an_engine_says_what_it_is() -> None:
    over_http = Probe(Ask.HTTP_HEALTH, 8080, "/info")
    assert Embedded().info(spec(), TWO, Protocol.BOTH) == over_http
    assert Tei().info(spec(), ONE, Protocol.HTTP) == over_http
    assert Tei().info(spec(), ONE, Protocol.GRPC) == Probe(Ask.GRPC_INFO, 8080)
    assert Tei().info(spec(), ONE, Protocol.UNKNOWN) is None
    assert Command().info(spec(), ONE, Protocol.HTTP) is None
