"""Which devices a child sees: an instance's `gpu_id` or `gpu_ids` as variables of the GPU libraries.

The programs have no flag for it. Indices count within what the manager itself may use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tei_manager.domain.instance import InstanceSpec
from tei_manager.engines.base import Surroundings
from tei_manager.kits.parsing import Problem

CUDA, HIP, ORDER = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
PCI = "PCI_BUS_ID"


def pinned(spec: InstanceSpec) -> tuple[tuple[str, int | str], ...]:
    """(path, device) of every device the instance is pinned to."""
    if spec.gpu_id is not None:
        return (("gpu_id", spec.gpu_id),)
    return tuple((f"gpu_ids[{index}]", device) for index, device in enumerate(spec.gpu_ids or ()))


def variables(spec: InstanceSpec, around: Surroundings) -> tuple[dict[str, str], tuple[Problem, ...]]:
    """The device variables of the child, to be laid over the manager's own; empty if it may see what we see."""
    wanted = pinned(spec)
    if not wanted:
        return ({CUDA: "", HIP: ""} if spec.gpu_ids == () else {}), ()
    result: dict[str, str] = {}
    problems: dict[str, Problem] = {}
    for variable in _in_use(around.environ):
        visible = visible_set(around.environ.get(variable))
        known = around.gpu_uuids if variable == CUDA else None
        chosen: list[str] = []
        for path, device in wanted:
            if (entry := _entry(device, visible, known, around.environ)) is None:
                problems.setdefault(path, _impossible(path, device, visible, known))
            elif entry in chosen:
                problems.setdefault(path, Problem(path, "INVALID_GPU_ID", f"Invalid GPU ID {device}: given twice"))
            else:
                chosen.append(entry)
        result[variable] = ",".join(chosen)
        if variable == CUDA and any(entry.isdigit() for entry in chosen):
            # without it CUDA counts the fastest device first, and the number would mean another one
            result[ORDER] = around.environ.get(ORDER) or PCI
    return result, tuple(problems.values())


def visible_set(value: str | None) -> tuple[str, ...] | None:
    """The devices in a variable, None if it is unset. Like the libraries, stops at the first that is none."""
    if value is None:
        return None
    entries: list[str] = []
    for part in value.split(","):
        entry = part.strip()
        if not (entry.isascii() and entry.isdigit()) and not entry.startswith(("GPU-", "MIG-")):
            break
        entries.append(str(int(entry)) if entry.isdigit() else entry)
    return tuple(entries)


def _in_use(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that select devices here: AMD's if the manager has it, NVIDIA's unless that is all."""
    if HIP not in environ:
        return (CUDA,)
    return (CUDA, HIP) if CUDA in environ else (HIP,)


def _entry(
    device: int | str, visible: tuple[str, ...] | None, known: Sequence[str] | None, environ: Mapping[str, str]
) -> str | None:
    """What to write for `device`, None if it cannot be had."""
    in_pci_order = environ.get(ORDER, PCI) == PCI
    if isinstance(device, int):
        if visible is None:
            entry = str(device) if known is None or device < len(known) else None
        else:
            entry = visible[device] if device < len(visible) else None
        return _resolved(entry, known) if in_pci_order and entry else entry
    if visible is None:
        return device if known is None or device.startswith("MIG-") or _same_as_any(device, known) else None
    uuids = [entry for entry in visible if not entry.isdigit()]
    if len(uuids) == len(visible):
        return device if _same_as_any(device, uuids) else None
    if known is None or not in_pci_order or device.startswith("MIG-"):
        return device  # numbers and UUIDs cannot be compared here: the library will
    return device if _same_as_any(device, [_resolved(entry, known) for entry in visible]) else None


def _resolved(entry: str, known: Sequence[str] | None) -> str:
    """A number as the UUID it stands for, so that no other numbering can mislead."""
    if known is None or not entry.isdigit() or int(entry) >= len(known):
        return entry
    return known[int(entry)]


def _same_as_any(uuid: str, entries: Iterable[str]) -> bool:
    # the libraries take a UUID's beginning for the whole
    return any(uuid.startswith(entry) or entry.startswith(uuid) for entry in entries)


def _impossible(
    path: str, device: int | str, visible: tuple[str, ...] | None, known: Sequence[str] | None
) -> Problem:
    count = len(visible) if visible is not None else len(known or ())
    available: list[int] | list[str] = list(range(count))
    if isinstance(device, str):
        available = list(visible if visible is not None else known or ())
    shown = ", ".join(str(item) for item in available)
    return Problem(path, "INVALID_GPU_ID", f"Invalid GPU ID {device}: Available GPUs: [{shown}]")
