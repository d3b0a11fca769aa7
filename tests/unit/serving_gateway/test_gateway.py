"""The main verb on scripted engines: splitting, retries, deadlines, and what comes out when things go wrong."""

import asyncio

import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

from tei_manager.adapters.telemetry.prometheus import PrometheusMetrics
from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, InstanceSpec, Origin, Protocol
from tei_manager.domain.request import EmbedCall
from tei_manager.ports.http_upstream import Answer
from tei_manager.serving.gateway import Gateway, GatewaySettings, split
from tei_manager.serving.router import Router
from tei_manager.testing.fleet import FakeFleet

DEAD = errors.UpstreamError("gone", code="UPSTREAM_DIED")


def overloaded():
    body = b'{"error":"Model is overloaded","error_type":"Overloaded"}'
    return Answer(429, {"retry-after": "3"}, body)


class ScriptedEngines:
    """Implements `ports.http_upstream.HttpUpstream`. Answers a text "n" with [n, n + 0.5]; `script` goes first."""

    def __init__(self, max_batch=32):
        self.info = {"max_client_batch_size": max_batch, "model_type": {"embedding": {"pooling": "mean"}}}
        self.sent, self.script, self.hangs, self.forgotten = [], [], False, []
        self.running = self.most_running = 0

    async def send(self, endpoint, wire, *, timeout_secs):
        self.sent.append((endpoint.instance, wire))
        await asyncio.sleep(0)
        if wire.path == "/info":
            return Answer(200, {}, orjson.dumps(self.info))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(60 if self.hangs else 0.001)
        finally:
            self.running -= 1
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            if step is not None:
                return step
        inputs = orjson.loads(wire.body)["inputs"]
        inputs = inputs if isinstance(inputs, list) else [inputs]
        rows = np.array([[float(each), float(each) + 0.5] for each in inputs], dtype="<f4")
        headers = {"content-type": "application/octet-stream", "x-compute-tokens": str(3 * len(inputs))}
        return Answer(200, headers, rows.tobytes())

    def forget(self, uid):
        self.forgotten.append(uid)

    async def close(self):
        pass

    @property
    def embeds(self):
        return [(name, wire) for name, wire in self.sent if wire.path == "/embed"]


class House:
    def __init__(self, **settings):
        self.router = Router()
        self.fleet = FakeFleet(doors=[self.router])
        self.engines = ScriptedEngines()
        self.metrics = PrometheusMetrics(CollectorRegistry(), version="0")
        self.gateway = Gateway(
            router=self.router, http=self.engines, metrics=self.metrics, settings=GatewaySettings(**settings)
        )

    async def run(self, *names, **fields):
        for name in names:
            fields = {"engine": EngineKind.EMBEDDED, **fields}
            await self.fleet.create(InstanceSpec(name=name, model_id="org/m", **fields), origin=Origin.API)
            await self.fleet.wait_running(name, timeout_secs=1)

    async def embed(self, *inputs, target="org/m", dimensions=None):
        return await self.gateway.embed(EmbedCall(target=target, inputs=inputs, dimensions=dimensions))


@pytest.fixture
async def house():
    house = House()
    await house.run("a")
    return house


async def test_one_text_costs_one_call(house):
    answer = await house.embed("5")
    assert answer.rows.tolist() == [[5.0, 5.5]]
    assert answer.rows.dtype == np.float32
    assert answer.tokens == 3
    assert [wire.path for _, wire in house.engines.sent] == ["/embed"]


async def test_a_large_request_is_split_and_put_together_in_order(house):
    house.engines.info["max_client_batch_size"] = 4
    answer = await house.embed(*map(str, range(10)))
    assert answer.rows[:, 0].tolist() == list(range(10))
    assert answer.tokens == 30
    assert sorted(len(orjson.loads(wire.body)["inputs"]) for _, wire in house.engines.embeds) == [2, 4, 4]


async def test_the_limit_of_an_endpoint_is_asked_once(house):
    await asyncio.gather(*(house.embed("1", "2") for _ in range(5)))
    await house.embed("1", "2")
    assert [wire.path for _, wire in house.engines.sent].count("/info") == 1


async def test_a_restarted_instance_is_asked_again_and_its_connections_are_closed(house):
    await house.embed("1", "2")
    old = house.fleet.get("a").uid
    await house.fleet.restart("a")
    await house.fleet.wait_running("a", timeout_secs=1)
    await house.embed("1", "2")
    assert house.engines.forgotten == [old]
    assert [wire.path for _, wire in house.engines.sent].count("/info") == 2


async def test_parts_run_at_once_but_not_all():
    house = House(max_concurrency=3)
    await house.run("a")
    house.engines.info["max_client_batch_size"] = 1
    await house.embed(*map(str, range(10)))
    assert house.engines.most_running == 3


async def test_calls_go_to_whoever_is_least_busy(house):
    await house.run("b")
    await asyncio.gather(*(house.embed("1") for _ in range(10)))
    names = [name for name, _ in house.engines.embeds]
    assert (names.count("a"), names.count("b")) == (5, 5)


@pytest.mark.parametrize("fault", [DEAD, errors.UpstreamError("refused", code="UPSTREAM_UNREACHABLE")])
async def test_an_engine_that_dies_is_replaced_by_another(house, fault):
    await house.run("b")
    house.engines.script = [fault]
    assert (await house.embed("1")).rows.shape == (1, 2)
    assert [name for name, _ in house.engines.embeds] == ["a", "b"]
    assert b'upstream_retries_total{class="upstream_' in house.metrics.text()


async def test_an_engine_that_dies_alone_is_tried_once_more_and_no_oftener(house):
    house.engines.script = [DEAD]
    await house.embed("1")
    house.engines.script = [DEAD, DEAD]
    with pytest.raises(errors.UpstreamError, match="gone"):
        await house.embed("1")
    assert len(house.engines.embeds) == 4


async def test_a_busy_engine_is_left_for_another_but_not_pressed(house):
    house.engines.script = [overloaded()]
    with pytest.raises(errors.UpstreamRefused) as caught:
        await house.embed("1")
    assert (caught.value.code, caught.value.retry_after) == ("UPSTREAM_RATE_LIMITED", 3)
    await house.run("b")
    house.engines.script = [overloaded()]
    await house.embed("1")


async def test_the_callers_fault_is_not_repeated(house):
    await house.run("b")
    body = b'{"error":"Input validation error: `inputs` cannot be empty","error_type":"Empty"}'
    house.engines.script = [Answer(400, {}, body)]
    with pytest.raises(errors.UpstreamRefused, match="cannot be empty"):
        await house.embed("1")
    assert len(house.engines.embeds) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {"content-type": "application/octet-stream"}, b"12345"),
        Answer(200, {"content-type": "application/octet-stream"}, b""),
        Answer(200, {"content-type": "application/octet-stream"}, np.array([np.nan], "<f4").tobytes()),
        Answer(200, {}, b""),
        Answer(200, {}, b"<html>"),
        Answer(200, {}, b"[]"),
        Answer(200, {}, b"[[1.0],[2.0]]"),
        Answer(200, {}, b"[1.0]"),
        Answer(200, {}, b"[[null]]"),
        Answer(200, {}, b'[["1.0"]]'),
        Answer(200, {}, b"[[true]]"),
        Answer(200, {}, b"[[1e39]]"),
        Answer(200, {}, b'{"data":[{"index":3,"embedding":[1.0]}]}'),
        Answer(204, {}, b""),
        Answer(302, {"location": "/"}, b""),
    ],
)
async def test_nonsense_is_not_passed_on(house, answer):
    house.engines.script = [answer]
    with pytest.raises(errors.UpstreamError) as caught:
        await house.embed("1")
    assert caught.value.code == "UPSTREAM_MALFORMED"


async def test_rows_of_different_length_are_not_passed_on(house):
    house.engines.script = [Answer(200, {}, b"[[1.0],[1.0,2.0]]")]
    with pytest.raises(errors.UpstreamError) as caught:
        await house.embed("1", "2")
    assert caught.value.code == "UPSTREAM_MALFORMED"


async def test_the_first_failure_ends_the_other_parts_and_names_its_inputs(house):
    house.engines.info["max_client_batch_size"] = 2
    house.engines.script = [None, Answer(422, {}, b'{"error":"too long","error_type":"Validation"}')]
    with pytest.raises(errors.UpstreamRefused, match=r"inputs \d-\d: too long"):
        await house.embed("0", "1", "2", "3")
    assert house.engines.running == 0


async def test_a_call_that_takes_too_long():
    house = House(request_timeout_secs=0.05)
    await house.run("a")
    house.engines.hangs = True
    with pytest.raises(errors.UpstreamTimeout):
        await house.embed("1")
    assert house.engines.running == 0
    assert house.router.pool.in_flight(house.fleet.get("a").uid) == 0


async def test_a_cancelled_call_ends_upstream_and_frees_its_permit(house):
    house.engines.hangs = True
    call = asyncio.create_task(house.embed("1"))
    await asyncio.sleep(0.01)
    assert house.router.pool.in_flight(house.fleet.get("a").uid) == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert house.engines.running == 0
    assert house.router.pool.in_flight(house.fleet.get("a").uid) == 0


async def test_a_call_cut_by_a_stop_goes_elsewhere(house):
    await house.run("b")
    house.engines.hangs = True
    call = asyncio.create_task(house.embed("1"))
    await asyncio.sleep(0.01)
    house.engines.hangs = False
    await house.router.withdraw(house.fleet.get("a").uid, drain_secs=0)
    assert (await call).rows.shape == (1, 2)
    assert [name for name, _ in house.engines.embeds] == ["a", "b"]


async def test_unknown_and_unready_targets(house):
    with pytest.raises(errors.UnknownTarget):
        await house.embed("1", target="nope")
    await house.fleet.stop("a")
    with pytest.raises(errors.NotReady):
        await house.embed("1", target="a")


async def test_what_an_engine_cannot_do_is_refused_before_it_is_asked(house):
    house.engines.info |= {
        "engine": {"vocab_size": 100, "embedding_dimension": 2},
    }
    with pytest.raises(errors.CallerError, match="dimensions"):
        await house.embed("1", dimensions=3)
    with pytest.raises(errors.CallerError, match="vocabulary"):
        await house.embed([1, 100])
    assert not house.engines.embeds


async def test_a_model_of_another_kind_does_not_embed(house):
    house.engines.info["model_type"] = {"reranker": {"id2label": {}, "label2id": {}}}
    with pytest.raises(errors.CallerError, match="rerank") as caught:
        await house.embed("1", "2")
    assert caught.value.code == "OPERATION_NOT_SUPPORTED"


async def test_an_engine_that_speaks_grpc_only():
    house = House()
    house.fleet = FakeFleet(doors=[house.router], protocol=Protocol.GRPC)
    await house.run("a", engine=EngineKind.TEI)
    with pytest.raises(errors.UpstreamRefused) as caught:
        await house.embed("1")
    assert caught.value.code == "OPERATION_NOT_SUPPORTED"


async def test_calls_are_counted_by_instance_and_outcome(house):
    await house.embed("1")
    house.engines.script = [Answer(500, {}, b"")]
    with pytest.raises(errors.UpstreamError):
        await house.embed("1")
    text = house.metrics.text().decode()
    for outcome in ("ok", "upstream_error"):
        assert f'upstream_calls_total{{op="embed",outcome="{outcome}",upstream="a"}} 1.0' in text
    assert 'tei_manager_upstream_seconds_count{op="embed",upstream="a"} 2.0' in text


def test_splitting_is_greedy_and_in_order():
    def sizes(inputs, max_items=100, max_bytes=10**6):
        return [(part.first, len(part.inputs)) for part in split(inputs, max_items=max_items, max_bytes=max_bytes)]

    assert sizes(["x"] * 250) == [(0, 100), (100, 100), (200, 50)]
    assert sizes(["x"] * 100) == [(0, 100)]
    assert sizes(["12345", "12345", "1", "1234567890X", "1"], max_bytes=10) == [(0, 2), (2, 1), (3, 1), (4, 1)]
    assert sizes(["ü" * 4, "ü" * 4], max_bytes=10) == [(0, 1), (1, 1)]
    assert sizes([[1, 2], [3]], max_bytes=16) == [(0, 1), (1, 1)]
