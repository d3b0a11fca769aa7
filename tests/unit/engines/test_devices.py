"""Which devices a child sees."""

from __future__ import annotations

import pytest

from tei_manager.domain.instance import InstanceSpec
from tei_manager.engines.base import Surroundings
from tei_manager.engines.devices import variables, visible_set

A, B = "GPU-aaaa-1", "GPU-bbbb-2"
PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def of(environ: dict[str, str], uuids: tuple[str, ...] | None = None, **pins: object):
    spec = InstanceSpec(name="a", model_id="m").with_(**pins)
    place = Surroundings(host="::1", program="p", version=None, environ=environ, gpu_uuids=uuids)
    found, problems = variables(spec, place)
    return [(problem.path, problem.code, problem.message) for problem in problems] or found


@pytest.mark.parametrize(
    ("environ", "pins", "expected"),
    [
        ({}, {}, {}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {}, {}),
        ({}, {"gpu_ids": ()}, {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}),
        ({}, {"gpu_id": 0}, {"CUDA_VISIBLE_DEVICES": "0", **PCI}),
        ({}, {"gpu_ids": (2, 0)}, {"CUDA_VISIBLE_DEVICES": "2,0", **PCI}),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, {"gpu_id": 1}, {"CUDA_VISIBLE_DEVICES": "3", **PCI}),
        ({"CUDA_VISIBLE_DEVICES": f"{A},{B}"}, {"gpu_id": 1}, {"CUDA_VISIBLE_DEVICES": B}),
        ({"CUDA_VISIBLE_DEVICES": f"{A},{B}"}, {"gpu_id": B}, {"CUDA_VISIBLE_DEVICES": B}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}, {"gpu_id": B}, {"CUDA_VISIBLE_DEVICES": B}),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, {"gpu_id": A}, {"CUDA_VISIBLE_DEVICES": A}),
        ({}, {"gpu_id": "MIG-1234"}, {"CUDA_VISIBLE_DEVICES": "MIG-1234"}),
        (
            {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
            {"gpu_id": 1},
            {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
        ),
        ({"HIP_VISIBLE_DEVICES": "4,5"}, {"gpu_id": 1}, {"HIP_VISIBLE_DEVICES": "5"}),
        (
            {"HIP_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "4,5"},
            {"gpu_id": 1},
            {"CUDA_VISIBLE_DEVICES": "5", "HIP_VISIBLE_DEVICES": "5", **PCI},
        ),
    ],
)
def test_pins_become_variables(environ, pins, expected):
    assert of(environ, **pins) == expected


@pytest.mark.parametrize(
    ("environ", "pins", "expected"),
    [
        ({}, {"gpu_id": 1}, {"CUDA_VISIBLE_DEVICES": B}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"gpu_id": 0}, {"CUDA_VISIBLE_DEVICES": B}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"gpu_id": B}, {"CUDA_VISIBLE_DEVICES": B}),
    ],
)
def test_known_devices_are_named_by_uuid(environ, pins, expected):
    assert of(environ, (A, B), **pins) == expected


def test_numbers_of_another_order_are_not_taken_for_uuids():
    environ = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert of(environ, (A, B), gpu_id=1) == {**environ, "CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("environ", "uuids", "pins", "path", "text"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, None, {"gpu_id": 99}, "gpu_id", "99: Available GPUs: [0, 1]"),
        ({}, (A, B), {"gpu_id": 99}, "gpu_id", "99: Available GPUs: [0, 1]"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, {"gpu_id": 0}, "gpu_id", "0: Available GPUs: []"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None, {"gpu_id": 0}, "gpu_id", "0: Available GPUs: []"),
        ({}, (), {"gpu_id": 0}, "gpu_id", "0: Available GPUs: []"),
        ({"CUDA_VISIBLE_DEVICES": A}, None, {"gpu_id": B}, "gpu_id", f"{B}: Available GPUs: [{A}]"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, (A, B), {"gpu_id": B}, "gpu_id", f"{B}: Available GPUs: [0]"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None, {"gpu_ids": (0, 1)}, "gpu_ids[1]", "1: Available GPUs: [0]"),
        ({"HIP_VISIBLE_DEVICES": "0"}, None, {"gpu_id": 1}, "gpu_id", "1: Available GPUs: [0]"),
        ({}, None, {"gpu_ids": (1, 1)}, "gpu_ids[1]", "1: given twice"),
    ],
)
def test_impossible_devices_are_named_with_what_there_is(environ, uuids, pins, path, text):
    assert of(environ, uuids, **pins) == [(path, "INVALID_GPU_ID", f"Invalid GPU ID {text}")]


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        (None, None),
        ("", ()),
        ("0, 1", ("0", "1")),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
        (A, (A,)),
        ("01", ("1",)),
    ],
)
def test_the_visible_set_is_read_like_the_libraries_do(value, devices):
    assert visible_set(value) == devices
