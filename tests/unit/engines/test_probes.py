"""What is asked of a running engine, and where."""

from __future__ import annotations

import pytest

from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines.base import Ask, Probe
from tei_manager.engines.command import Command
from tei_manager.engines.embedded import Embedded
from tei_manager.engines.tei import Tei

ONE, TWO = Ports(main=8080), Ports(main=8080, grpc=8179)
HTTP, GRPC, BOTH, UNKNOWN = Protocol.HTTP, Protocol.GRPC, Protocol.BOTH, Protocol.UNKNOWN
HEALTH, INFO = Probe(Ask.HTTP_HEALTH, 8080), Probe(Ask.GRPC_INFO, 8080)


def spec(**changes: object) -> InstanceSpec:
    return InstanceSpec(name="a", model_id="m").with_(**changes)


@pytest.mark.parametrize(
    ("declared", "seen", "expected"),
    [
        (None, UNKNOWN, ((HTTP, HEALTH), (GRPC, INFO))),
        (None, HTTP, ((HTTP, HEALTH),)),
        (None, GRPC, ((GRPC, INFO),)),
        (GRPC, UNKNOWN, ((GRPC, INFO),)),
        (HTTP, GRPC, ((HTTP, HEALTH),)),
        (BOTH, UNKNOWN, ((BOTH, HEALTH),)),
    ],
)
def test_tei_is_asked_in_the_protocol_it_may_speak(declared, seen, expected):
    assert tuple(Tei().readiness(spec(protocol=declared), ONE, seen)) == expected


def test_tei_answers_one_real_request_before_it_is_announced():
    tei = Tei()
    assert tei.warm_up(spec(), ONE, HTTP) == Probe(Ask.HTTP_WARM_UP, 8080, "/embed")
    assert tei.warm_up(spec(), ONE, GRPC) == Probe(Ask.GRPC_WARM_UP, 8080)
    assert tei.warm_up(spec(), ONE, UNKNOWN) is None


def test_liveness_of_tei_does_not_wait_behind_its_work():
    assert Tei().liveness(spec(), ONE, HTTP) == Probe(Ask.HTTP_HEALTH, 8080, "/info")
    assert Tei().liveness(spec(), ONE, GRPC) == INFO


def test_the_embedded_engine_speaks_both_on_two_ports():
    engine = Embedded()
    assert tuple(engine.readiness(spec(), TWO, UNKNOWN)) == ((BOTH, HEALTH),)
    assert engine.liveness(spec(), TWO, BOTH) == Probe(Ask.HTTP_HEALTH, 8080, "/info")
    assert engine.warm_up(spec(), TWO, BOTH) == Probe(Ask.GRPC_WARM_UP, 8179)
    assert engine.warm_up(spec(), ONE, BOTH) == Probe(Ask.HTTP_WARM_UP, 8080, "/embed")
    assert engine.has_second_port


def test_a_command_is_asked_on_its_health_path_and_never_warmed_up():
    engine = Command()
    assert tuple(engine.readiness(spec(), ONE, UNKNOWN)) == ((HTTP, HEALTH),)
    wanted = spec(health_path="/up", protocol=BOTH)
    assert tuple(engine.readiness(wanted, ONE, UNKNOWN)) == ((BOTH, Probe(Ask.HTTP_HEALTH, 8080, "/up")),)
    assert tuple(engine.readiness(spec(protocol=GRPC), ONE, UNKNOWN)) == ((GRPC, INFO),)
    assert engine.warm_up(spec(), ONE, HTTP) is None
    assert (engine.has_second_port, engine.has_metrics_port) == (False, False)
