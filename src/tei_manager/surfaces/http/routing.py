"""One route per path, one handler per method: a wrong method knows what would have been right."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tei_manager.surfaces.http.errors import Refused

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class Verbs:
    """An ASGI app that chooses by method. HEAD is GET; the server drops the body."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers: Mapping[str, Handler] = handlers | ({"HEAD": handlers["GET"]} if "GET" in handlers else {})
        self._allow = ", ".join(sorted(self._handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (handler := self._handlers.get(scope["method"])) is None:
            raise Refused(
                "METHOD_NOT_ALLOWED",
                f"{scope['method']} is not allowed here, only {self._allow}",
                headers=(("allow", self._allow),),
            )
        await handler(scope, receive, send)


def route(path: str, **handlers: Handler) -> Route:
    return Route(path, Verbs(**handlers))


async def unknown(scope: Scope, receive: Receive, send: Send) -> NoReturn:
    raise Refused("NOT_FOUND", "There is nothing at this path")


def label(scope: Scope) -> str:
    """The pattern of the route that was taken, for metrics: never a caller's text."""
    taken = scope.get("route")
    return taken.path.replace(":path}", "}") if isinstance(taken, Route) else "other"
