"""Stubs compiled from a .proto file, and nothing else of ours: `grpc_client.py STUBS HOST:PORT KEY < CALLS`.

CALLS is a JSON list of [service, method, requests]; the answers of each go to standard output as a JSON list.
"""

import importlib
import json
import sys

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

stubs, target, key = sys.argv[1:]
sys.path.insert(0, stubs)
tei_pb2 = importlib.import_module("tei.v1.tei_pb2")
tei_pb2_grpc = importlib.import_module("tei.v1.tei_pb2_grpc")


def ask(channel, service, method, requests):
    described = tei_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    message = getattr(tei_pb2, described.input_type.name)
    rpc = getattr(getattr(tei_pb2_grpc, f"{service}Stub")(channel), method)
    given = (ParseDict(request, message()) for request in requests)
    options = {"metadata": [("authorization", f"Bearer {key}")], "timeout": 30}
    answers = rpc(given, **options) if described.client_streaming else rpc(next(given), **options)
    answers = answers if described.server_streaming else [answers]
    return [MessageToDict(answer, preserving_proto_field_name=True) for answer in answers]


with grpc.insecure_channel(target) as channel:
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    json.dump([ask(channel, *call) for call in json.load(sys.stdin)], sys.stdout)
