"""HTTP to engines by aiohttp: the one door to that library."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
import yarl

from tei_manager.domain import errors
from tei_manager.domain.target import Endpoint
from tei_manager.ports.http_upstream import Answer, Wire

# below the 5 s after which common Python servers close an idle connection: a request sent at the very moment of
# closing would be lost
IDLE_SECS = 4.0
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding")


class HttpUpstreams:
    """Implements `ports.http_upstream.HttpUpstream`: one set of kept-open connections per endpoint uid.

    How many calls run at once is the pool's business, so connections are not counted here. Belongs to one event
    loop.
    """

    def __init__(self, *, connect_timeout_secs: float = 5.0, max_answer_bytes: int = 256 * 1024 * 1024) -> None:
        self._connect_timeout_secs, self._max_answer_bytes = connect_timeout_secs, max_answer_bytes
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def send(self, endpoint: Endpoint, wire: Wire, *, timeout_secs: float) -> Answer:
        address = endpoint.http_address
        if address is None:
            raise errors.UpstreamError(f"Instance '{endpoint.instance}' does not speak HTTP")
        session = self._session(endpoint.uid)
        url = yarl.URL(f"http://{address}{wire.path}", encoded=True)
        timeout = aiohttp.ClientTimeout(
            total=timeout_secs, sock_connect=self._connect_timeout_secs, ceil_threshold=1e9
        )
        try:
            async with session.request(
                wire.method,
                url,
                data=wire.body or None,
                headers=_with_key(endpoint, wire.headers),
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await self._read(endpoint, response)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _fault(endpoint, "cannot be reached", "UPSTREAM_UNREACHABLE") from error
        except TimeoutError as error:
            raise errors.UpstreamTimeout(f"Instance '{endpoint.instance}' did not answer in time") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as error:
            raise _fault(endpoint, "broke off before its answer was complete", "UPSTREAM_DIED") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise _fault(endpoint, "did not answer in HTTP", "UPSTREAM_MALFORMED") from error

    def forget(self, uid: str) -> None:
        if (session := self._sessions.pop(uid, None)) is not None:
            task = asyncio.get_running_loop().create_task(session.close(), name=f"close {uid}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for uid in tuple(self._sessions):
            self.forget(uid)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def _read(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> bytes:
        limit = self._max_answer_bytes
        declared = response.content_length
        if declared is not None and declared <= limit:
            return await response.read()
        chunks: list[bytes] = []
        size = declared or 0
        if size <= limit:
            size = 0
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
        if size > limit:
            response.close()
            raise _fault(endpoint, f"answered more than {limit} bytes", "UPSTREAM_MALFORMED")
        return b"".join(chunks)

    def _session(self, uid: str) -> aiohttp.ClientSession:
        if (session := self._sessions.get(uid)) is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECS, ttl_dns_cache=60)
            session = self._sessions[uid] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=_SKIPPED,
            )
        return session


def _with_key(endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
    if endpoint.key is None:
        return headers
    return {**headers, "authorization": f"Bearer {endpoint.key}"}


def _fault(endpoint: Endpoint, what: str, code: str) -> errors.UpstreamError:
    # names the instance, never its address
    return errors.UpstreamError(f"Instance '{endpoint.instance}' {what}", code=code)
