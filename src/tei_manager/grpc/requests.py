"""Two helpers that build requests for the multiplexer."""

from __future__ import annotations

from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.tei.v1 import tei_pb2


def Target(
    name: str | None = None,
    *,
    instance_name: str | None = None,
    model_id: str | None = None,
    instance_index: int | None = None,
    index: int | None = None,
    model: str | None = None,
) -> mux_pb2.Target:
    """A target from exactly one argument, else TypeError. A positional text is an instance name; `index` and
    `model` are earlier names of `instance_index` and `model_id`."""
    given = {
        "name": name,
        "instance_name": instance_name,
        "model_id": model_id,
        "instance_index": instance_index,
        "index": index,
        "model": model,
    }
    chosen = [key for key, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise TypeError(f"Target() takes exactly one argument, {len(chosen)} were given: {', '.join(chosen)}")
    if chosen[0] in ("name", "instance_name"):
        return mux_pb2.Target(instance_name=name if instance_name is None else instance_name)
    if chosen[0] in ("model", "model_id"):
        return mux_pb2.Target(model_id=model if model_id is None else model_id)
    return mux_pb2.Target(instance_index=index if instance_index is None else instance_index)


def create_request(
    text: str,
    target: str | mux_pb2.Target | None = None,
    *,
    truncate: bool = True,
    normalize: bool = True,
    truncation_direction: tei_pb2.TruncationDirection | None = None,
    prompt_name: str | None = None,
    dimensions: int | None = None,
) -> mux_pb2.EmbedRequest:
    """A request to embed `text`. A text as `target` is an instance name; None leaves it out, as later messages of
    a stream may."""
    return mux_pb2.EmbedRequest(
        target=mux_pb2.Target(instance_name=target) if isinstance(target, str) else target,
        request=tei_pb2.EmbedRequest(
            inputs=text,
            truncate=truncate,
            normalize=normalize,
            truncation_direction=truncation_direction,
            prompt_name=prompt_name,
            dimensions=dimensions,
        ),
    )
