"""Asking engines whether they are there and what they know of themselves, over whichever protocol that needs."""

from __future__ import annotations

import asyncio

from tei_manager.adapters.upstream.grpc_probe import GrpcProbe
from tei_manager.adapters.upstream.http_probe import HttpProbe
from tei_manager.engines.base import Ask, Page, Probe
from tei_manager.engines.metrics_reading import EngineInfo, EngineMetrics, read_info
from tei_manager.ports.prober import Seen

FORGET_AFTER_SECS = 900.0
# what an engine binds to be reached everywhere, and where we then reach it
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


class EngineProber:
    """Implements `ports.prober.Prober` and `ports.inspector.Inspector`.

    Connections are kept open per (host, port) until `forget`, `close`, or 15 minutes without a question.
    """

    def __init__(self) -> None:
        self._http, self._grpc = HttpProbe(), GrpcProbe()
        self._asked: dict[tuple[str, int], float] = {}

    async def ask(self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None) -> Seen:
        host = self._reached(host, probe.port)
        try:
            async with asyncio.timeout(timeout_secs):
                return await self._ask(host, probe, timeout_secs, key)
        except TimeoutError:
            return Seen(False, f"no answer within {timeout_secs:g}s")

    async def metrics(
        self, host: str, page: Page, *, timeout_secs: float, key: str | None = None
    ) -> EngineMetrics | None:
        body = await self._page(self._reached(host, page.port), page.port, page.path, timeout_secs, key)
        return None if body is None else page.read(body.decode(errors="replace"))

    async def info(
        self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None
    ) -> EngineInfo | None:
        host = self._reached(host, probe.port)
        if probe.ask is Ask.GRPC_INFO:
            return await self._grpc.about(host, probe.port, key=key, timeout_secs=timeout_secs)
        body = await self._page(host, probe.port, probe.path, timeout_secs, key)
        return None if body is None else read_info(body)

    def forget(self, host: str, port: int) -> None:
        """Close what is open to a port that is not probed any more."""
        host = _EVERYWHERE.get(host, host)
        self._asked.pop((host, port), None)
        self._http.forget(host, port)
        self._grpc.forget(host, port)

    async def close(self) -> None:
        await asyncio.gather(self._http.close(), self._grpc.close())

    async def _ask(self, host: str, probe: Probe, timeout_secs: float, key: str | None) -> Seen:
        match probe.ask:
            case Ask.HTTP_HEALTH:
                return await self._http.get(host, probe.port, probe.path, key=key)
            case Ask.HTTP_WARM_UP:
                return await self._http.warm_up(host, probe.port, key=key)
            case Ask.OPENAI_WARM_UP:
                return await self._http.openai_warm_up(host, probe.port, probe.model, key=key)
            case Ask.GRPC_INFO:
                return await self._grpc.info(host, probe.port, key=key, timeout_secs=timeout_secs)
            case Ask.GRPC_WARM_UP:
                return await self._grpc.warm_up(host, probe.port, key=key, timeout_secs=timeout_secs)

    async def _page(self, host: str, port: int, path: str, timeout_secs: float, key: str | None) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_secs):
                return await self._http.page(host, port, path, key=key)
        except TimeoutError:
            return None

    def _reached(self, host: str, port: int) -> str:
        """The address at which an engine that binds `host` is asked, noted as in use."""
        host = _EVERYWHERE.get(host, host)
        now = asyncio.get_running_loop().time()
        for address, asked in tuple(self._asked.items()):
            if now - asked > FORGET_AFTER_SECS:
                self.forget(*address)
        self._asked[host, port] = now
        return host
