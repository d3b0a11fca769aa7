"""What happened: the story of one instance, and everything as it happens (server-sent events)."""

from __future__ import annotations

import orjson
from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tei_manager.domain import errors
from tei_manager.domain.event import Event
from tei_manager.kits import parsing
from tei_manager.ports.fleet import Fleet
from tei_manager.ports.journal import Journal
from tei_manager.surfaces.http import clock, query, wire
from tei_manager.surfaces.http.routing import route

EVENT_STREAM = "text/event-stream; charset=utf-8"
HEARTBEAT_SECS = 15.0  # proxies hang up on streams that say nothing
_LIMIT = parsing.Integer(1, 10_000)
_SEQ = parsing.Integer(0)


class Events:
    """The routes of the journal."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet, self._journal = fleet, journal

    def routes(self) -> list[Route]:
        return [
            route("/instances/{name}/story", GET=self.story),
            route("/events", GET=self.follow),
        ]

    async def story(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The last events of an instance, oldest first."""
        name = str(scope["path_params"]["name"])
        limit = query.param(QueryParams(scope["query_string"]), "limit", _LIMIT)
        self._fleet.get(name)
        events = await self._journal.story(name, limit=limit or 200)
        await wire.answer_json(send, 200, {"instance": name, "events": [_shown(event) for event in events]})

    async def follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every event as it happens; `since` or `Last-Event-ID` = those after that number first.

        Who asks for events that are no longer kept hears `reset`, and then what comes.
        """
        seen = self._begin_after(scope)
        headers = (("cache-control", "no-store"), ("x-accel-buffering", "no"))
        await wire.begin(send, 200, content_type=EVENT_STREAM, headers=headers)
        await _send(send, b": listening\n\n")
        async with wire.cancelled_when_gone(receive):
            while not self._journal.is_closed:
                events = self._journal.since(seen)
                if events is None:
                    seen = self._journal.last_seq
                    await _send(send, _frame("reset", seen, {"seq": seen}))
                elif events:
                    seen = events[-1].seq
                    await _send(
                        send, b"".join(_frame(str(event.type), event.seq, _shown(event)) for event in events)
                    )
                elif not await self._journal.newer(seen, timeout_secs=HEARTBEAT_SECS):
                    await _send(send, b": still here\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _begin_after(self, scope: Scope) -> int:
        since = query.param(QueryParams(scope["query_string"]), "since", _SEQ)
        if (last := wire.header(scope, b"last-event-id")) is not None and since is None:
            if not last.isascii() or not last.isdigit():
                raise errors.CallerError(f"Last-Event-ID: expected a number, got {parsing.shown(last)}")
            since = int(last)
        return self._journal.last_seq if since is None else since


def _shown(event: Event) -> dict[str, object]:
    return {
        "seq": event.seq,
        "timestamp": clock.text(event.timestamp),
        "type": event.type,
        "instance": event.instance,
        "from": event.before,
        "to": event.after,
        "reason": event.reason,
        "data": dict(event.data),
    }


def _frame(kind: str, number: int, value: object) -> bytes:
    return b"event: %s\nid: %d\ndata: %s\n\n" % (kind.encode(), number, orjson.dumps(value))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
