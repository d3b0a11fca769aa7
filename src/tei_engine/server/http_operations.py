"""Routes about the process itself: health, metrics, what is served, the document of all routes."""

from __future__ import annotations

from functools import cached_property

import orjson

from tei_engine.server import describe
from tei_engine.server.http_reply import HTML, JSON, PROMETHEUS, Call, Handler, Reply, json_reply
from tei_engine.server.openapi.document import document
from tei_engine.server.openapi.page import page
from tei_engine.server.service import Service

_NOTHING_FROM_OUTSIDE = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")


class Operations:
    """Health, metrics and the document, which are open to everybody, and `/info`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.open: frozenset[Handler] = frozenset({self._health, self._metrics, self._openapi, self._docs})
        """Handlers that need neither a key nor a loaded model."""

    def table(self) -> dict[str, dict[str, Handler]]:
        """Path → method → handler."""
        return {
            "/": {"GET": self._health},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/info": {"GET": self._info},
            "/api-doc/openapi.json": {"GET": self._openapi},
            "/docs": {"GET": self._docs},
        }

    async def _health(self, call: Call) -> Reply:
        self._service.check_health()
        return Reply()

    async def _metrics(self, call: Call) -> Reply:
        return Reply(body=self._service.metrics.render(), headers=[PROMETHEUS])

    async def _info(self, call: Call) -> Reply:
        return json_reply(describe.info(self._service))

    async def _openapi(self, call: Call) -> Reply:
        return self._documents[0]

    async def _docs(self, call: Call) -> Reply:
        return self._documents[1]

    @cached_property
    def _documents(self) -> tuple[Reply, Reply]:
        """For programs and for people; made when the first of them asks."""
        whole = document(guarded=self._service.settings.api_key is not None)
        return Reply(200, orjson.dumps(whole), [JSON]), Reply(200, page(whole), [HTML, _NOTHING_FROM_OUTSIDE])
