"""Routes about the process itself: health, metrics, what is served."""

from __future__ import annotations

from tei_engine.server import describe
from tei_engine.server.http_reply import PROMETHEUS, Call, Handler, Reply, json_reply
from tei_engine.server.service import Service


class Operations:
    """Health and metrics, which are open to everybody, and `/info`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.open: frozenset[Handler] = frozenset({self._health, self._metrics})
        """Handlers that need neither a key nor a loaded model."""

    def table(self) -> dict[str, dict[str, Handler]]:
        """Path → method → handler."""
        return {
            "/": {"GET": self._health},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/info": {"GET": self._info},
        }

    async def _health(self, call: Call) -> Reply:
        self._service.check_health()
        return Reply()

    async def _metrics(self, call: Call) -> Reply:
        return Reply(body=self._service.metrics.render(), headers=[PROMETHEUS])

    async def _info(self, call: Call) -> Reply:
        return json_reply(describe.info(self._service))
