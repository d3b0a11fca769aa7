"""Metrics: all of them from the start, and each request counted once."""

import contextlib
import json
import re
import socket
from itertools import pairwise

import pytest
from tests.integration.engine.damage import poisoned, without_unknown
from tests.integration.engine.scraping import moved, scrape, wait_until

PARTS = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
FAMILIES = {
    **dict.fromkeys(
        (
            *("te_request_count", "te_request_success", "te_request_failure"),
            *("te_embed_count", "te_embed_success", "te_predict_count", "te_predict_success"),
        ),
        "counter",
    ),
    **{f"te_{family}_{part}": "histogram" for family in ("request", "embed", "predict") for part in PARTS},
    **dict.fromkeys(("te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"), "histogram"),
    **dict.fromkeys(
        ("tei_engine_padding_ratio", "tei_engine_run_seconds", "tei_engine_lane_wait_seconds"), "histogram"
    ),
    **dict.fromkeys(("te_queue_size", "tei_engine_permits_in_use", "tei_engine_tokenizer_queue"), "gauge"),
    **dict.fromkeys(
        ("tei_engine_weights_bytes", "tei_engine_rss_bytes", "tei_engine_load_seconds", "tei_engine_info"), "gauge"
    ),
}
FAILURES = (
    *("validation", "batch_size", "model_type", "overloaded", "tokenization", "inference", "dropped"),
    "missing_values",
)


def serve(launch, folder, *flags):
    engine = launch("--model-id", str(folder), *flags)
    engine.wait_for("Ready")
    return engine


@pytest.fixture(scope="module")
def embedding(launch, tiny_folder):
    return serve(launch, tiny_folder("bert-mean"), "--max-client-batch-size", "4")


@pytest.fixture(scope="module")
def reranker(launch, tiny_folder):
    return serve(launch, tiny_folder("bert-reranker"), "--max-client-batch-size", "4")


def check_families(text, longest):
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert FAMILIES.items() <= kinds.items()
    assert set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)) == set(kinds)
    for method in ("single", "batch"):
        assert f'te_request_count{{method="{method}"}} 0\n' in text
        assert f'te_request_success{{method="{method}"}} 0\n' in text
    assert re.findall(r'te_request_failure\{err="(\w+)"\} 0\n', text) == list(FAILURES)
    for lane in ("priority", "bulk"):
        assert f'tei_engine_lane_wait_seconds_count{{lane="{lane}"}} 0\n' in text
    assert re.search(r'^tei_engine_info\{version="[^"]+",model="[^"]+",quantize="none"\} 1$', text, re.MULTILINE)
    durations = [1e-5 * 1.5**k for k in range(1, 36)]
    bounds = {name: durations for name in FAMILIES if name.startswith("te_") and name.endswith("duration")}
    bounds["te_batch_next_size"] = [2.0**k for k in range(13)]
    bounds["te_batch_next_tokens"] = [2.0**k for k in range(21)]
    bounds["te_request_input_length"] = [2.0**k for k in range(20) if 2**k <= longest]
    for name, expected in bounds.items():
        found = re.findall(rf'^{name}_bucket\{{le="(\S+)"\}} 0$', text, re.MULTILINE)
        assert found[-1] == "+Inf"
        assert [float(bound) for bound in found[:-1]] == pytest.approx(expected), name
        assert f"{name}_sum 0\n{name}_count 0\n" in text


def test_everything_is_there_before_the_first_request(launch, tiny_folder, a_free_port):
    port = a_free_port()
    engine = serve(launch, tiny_folder("modernbert-mean"), "--prometheus-port", str(port))
    reply = engine.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    check_families(reply.body.decode(), longest=96)
    assert engine.request("GET", "/health", port=port).body == b"OK"
    for path in ("/metrics", "/", "/anything"):
        check_families(engine.request("GET", path, port=port).body.decode(), longest=96)


def test_everything_is_there_while_the_model_loads(launch, tmp_path):
    with contextlib.ExitStack() as opened:
        silent_hub = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent_hub.settimeout(20)
        engine = launch(
            *("--model-id", "acme/slow", "--huggingface-hub-cache", str(tmp_path)),
            env={"HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}"},
        )
        opened.enter_context(silent_hub.accept()[0])  # the engine asks, and will get no answer
        check_families(engine.get("/metrics").body.decode(), longest=2**14)
        found = scrape(engine)
        assert found["tei_engine_weights_bytes"] == found["tei_engine_load_seconds"] == 0
        assert found["tei_engine_rss_bytes"] > 0
        assert engine.stop() == 0


def test_gauges_of_a_loaded_model(embedding):
    found = scrape(embedding)
    assert found["tei_engine_weights_bytes"] == embedding.get("/info").json["engine"]["footprint"]["weights_bytes"]
    assert found["tei_engine_load_seconds"] > 0
    assert found["te_queue_size"] == found["tei_engine_tokenizer_queue"] == found["tei_engine_permits_in_use"] == 0


def successful(method, family, inputs):
    """What one request that succeeds moves."""
    return {
        f'te_request_count{{method="{method}"}}': 1,
        f'te_request_success{{method="{method}"}}': 1,
        **{f"te_request_{part}_count": 1 for part in PARTS},
        **{f"te_{family}_{part}_count": inputs for part in PARTS},
        f"te_{family}_count": inputs,
        f"te_{family}_success": inputs,
        "te_request_input_length_count": inputs,
    }


def runs_apart(counts):
    """`counts` without those of runs, which depend on how inputs were put together."""
    return {name: count for name, count in counts.items() if not name.startswith("te_batch_next")}


SIMILAR = {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}
SUCCESSES = [
    ("embedding", "/embed", {"inputs": "a"}, "single", "embed", 1),
    ("embedding", "/embed", {"inputs": [5, 6, 7]}, "single", "embed", 1),
    ("embedding", "/embed", {"inputs": ["a", "b", [5]]}, "batch", "embed", 3),
    ("embedding", "/embed_all", {"inputs": ["a"]}, "batch", "embed", 1),
    ("embedding", "/v1/embeddings", {"input": "a"}, "single", "embed", 1),
    ("embedding", "/similarity", SIMILAR, "batch", "embed", 3),
    ("reranker", "/predict", {"inputs": "a"}, "single", "predict", 1),
    ("reranker", "/predict", {"inputs": [["a"], ["b", "c"]]}, "batch", "predict", 2),
    ("reranker", "/rerank", {"query": "a", "texts": ["b", "c", "d"]}, "batch", "predict", 3),
    ("reranker", "/v2/rerank", {"query": "a", "documents": ["b"]}, "batch", "predict", 1),
]


@pytest.mark.parametrize(("name", "path", "body", "method", "family", "inputs"), SUCCESSES)
def test_a_success_counts_once(request, name, path, body, method, family, inputs):
    engine = request.getfixturevalue(name)
    before = scrape(engine)
    assert engine.post(path, body).status == 200
    assert runs_apart(moved(before, scrape(engine))) == successful(method, family, inputs)


def failed(method, err):
    return {f'te_request_count{{method="{method}"}}': 1, f'te_request_failure{{err="{err}"}}': 1}


EARLY = [
    ("embedding", "/embed", {"inputs": ""}, "single", "validation"),
    ("embedding", "/embed", {"inputs": ["a", ""]}, "batch", "validation"),
    ("embedding", "/embed", {"inputs": "a", "dimensions": 0}, "single", "validation"),
    ("embedding", "/embed", {"inputs": "a", "prompt_name": "nope"}, "single", "validation"),
    ("embedding", "/embed", {"inputs": ["a"] * 5}, "batch", "batch_size"),
    ("embedding", "/embed", {}, "single", "validation"),
    ("embedding", "/embed", b"{", "single", "validation"),
    ("embedding", "/predict", {"inputs": "a"}, "single", "model_type"),
    ("embedding", "/rerank", {"query": "a", "texts": ["b"]}, "batch", "model_type"),
    ("embedding", "/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "batch", "validation"),
    ("embedding", "/vertex", {"instances": ["a"]}, "single", "validation"),
    ("reranker", "/embed", {"inputs": "a"}, "single", "model_type"),
    ("reranker", "/rerank", {"query": "a", "texts": []}, "batch", "validation"),
]


@pytest.mark.parametrize(("name", "path", "body", "method", "err"), EARLY, ids=lambda value: str(value)[:40])
def test_a_failure_counts_once(request, name, path, body, method, err):
    engine = request.getfixturevalue(name)
    before = scrape(engine)
    assert engine.post(path, body).status >= 400
    assert moved(before, scrape(engine)) == failed(method, err)


def test_inputs_that_fail_later_are_counted_as_begun(embedding):
    before = scrape(embedding)
    assert embedding.post("/embed", {"inputs": ["a " * 70, "b"], "truncate": False}).status == 422
    assert moved(before, scrape(embedding)) == failed("batch", "validation") | {"te_embed_count": 2}


def test_faults_of_model_and_tokenizer(launch, tiny_folder, tmp_path):
    folder = poisoned(tiny_folder("bert-reranker"), tmp_path / "nan", "position_embeddings.weight", 80)
    engine = serve(launch, without_unknown(folder, tmp_path / "both"))
    before = scrape(engine)
    assert engine.post("/predict", {"inputs": ["a", "b " * 90]}).status == 424
    counts = runs_apart(moved(before, scrape(engine)))
    assert counts == failed("single", "missing_values") | {"te_predict_count": 1}
    before = scrape(engine)
    assert engine.post("/predict", {"inputs": "東"}).status == 422
    assert moved(before, scrape(engine)) == failed("single", "tokenization") | {"te_predict_count": 1}


def test_what_needs_no_model_is_not_counted(embedding):
    before = scrape(embedding)
    assert embedding.post("/tokenize", {"inputs": "a"}).status == 200
    assert embedding.post("/tokenize", {"inputs": 5}).status == 422
    assert embedding.post("/decode", {"ids": [5]}).status == 200
    assert embedding.post("/decode", b"{").status == 400
    for path in ("/health", "/info", "/v1/models", "/nowhere"):
        embedding.get(path)
    assert moved(before, scrape(embedding)) == {}


def test_runs_and_lengths_are_measured(embedding):
    before = scrape(embedding)
    assert embedding.post("/embed", {"inputs": [[5] * 3, [5] * 33]}).status == 200
    after = scrape(embedding)

    def grown(name):
        return after[name] - before[name]

    assert grown("te_request_input_length_sum") == 36
    assert grown('te_request_input_length_bucket{le="4"}') == 1
    assert grown('te_request_input_length_bucket{le="32"}') == 1
    assert grown('te_request_input_length_bucket{le="64"}') == 2
    assert grown("te_batch_next_tokens_sum") == 36
    assert grown("te_batch_next_size_sum") == 2
    assert (
        grown("te_batch_next_size_count") == grown("tei_engine_run_seconds_count") == 2
    )  # unlike lengths: two runs
    assert grown("tei_engine_padding_ratio_sum") == 2  # and no padding
    for name in ("te_request_duration", "te_embed_duration"):
        found = [after[key] for key in after if key.startswith(f"{name}_bucket")]
        assert all(low <= high for low, high in pairwise(found))
        assert found[-1] == after[f"{name}_count"]


def test_a_request_whose_client_goes_away_is_dropped(launch, tiny_folder):
    engine = serve(launch, tiny_folder("bert-mean"), "--auto-split", "--compute-workers", "1")
    before = scrape(engine)
    body = json.dumps({"inputs": ["a " * 60] * 8192}).encode()
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(head % len(body) + body)
        wait_until(engine, lambda found: found["tei_engine_permits_in_use"] > 0)
    dropped = 'te_request_failure{err="dropped"}'
    after = wait_until(engine, lambda found: found[dropped] == 1 and not found["tei_engine_permits_in_use"])
    assert after["te_queue_size"] == after["tei_engine_tokenizer_queue"] == 0
    assert after["te_embed_success"] < 8192
    assert after['te_request_count{method="batch"}'] - before['te_request_count{method="batch"}'] == 1
    assert after['te_request_success{method="batch"}'] == 0
    before = scrape(engine)
    assert engine.post("/embed", {"inputs": "a"}).status == 200
    assert runs_apart(moved(before, scrape(engine))) == successful("single", "embed", 1)
