"""A thin client of the control API. Proxy settings of the environment are ignored: a manager is near."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tei_manager.app.client.failures import ErrorAnswer, Unreachable, WrongUsage

DEFAULT_URL = "http://127.0.0.1:9000"
CONNECT_S = 5.0
READ_S = 15.0
SLOW_S = 600.0  # verbs that answer when a process is gone, and inference

Json = dict[str, Any]


class Client:
    """One manager. Every call raises `ErrorAnswer` or `Unreachable`; the API key is never part of a text."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raises `WrongUsage` for a URL or a key that can never work."""
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        try:
            parts = urlsplit(self.url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            raise WrongUsage(f"not a URL: {url}") from None
        if parts.username is not None or parts.password is not None:
            # the URL is printed in messages
            raise WrongUsage("the URL must not hold credentials: use --api-key or TEI_MANAGER_API_KEY")
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise WrongUsage(f"not an http or https URL: {url}")
        self._tls, self._prefix = parts.scheme == "https", parts.path
        self._headers = {"Accept": "application/json", "Connection": "close"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise WrongUsage("the API key holds characters that a header cannot carry")
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: object = None, *, timeout_s: float = SLOW_S) -> Any:
        return self.call("POST", path, body=body, timeout_s=timeout_s)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path, timeout_s=SLOW_S)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The decoded answer, None for an empty one."""
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = self._prefix + path + (f"?{urlencode(given)}" if given else "")
        content = None if body is None else json.dumps(body).encode()
        status, answer = self._exchange(method, target, content, timeout_s)
        try:
            value = json.loads(answer) if answer.strip() else None
        except ValueError:
            if status < 300:
                raise Unreachable(f"what answers at {self.url} is not tei-manager: no JSON") from None
            value = None
        if status >= 300:
            raise read_error(status, value)
        return value

    def _exchange(self, method: str, target: str, content: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host or "", self._port, timeout=CONNECT_S)
        headers = self._headers | ({"Content-Type": "application/json"} if content is not None else {})
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, target, content, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except ConnectionRefusedError:
            hint = "(is it running? start it with 'tei-manager serve')"
            raise Unreachable(f"cannot reach tei-manager at {self.url}: connection refused {hint}") from None
        except TimeoutError:
            raise Unreachable(f"cannot reach tei-manager at {self.url}: no answer in time") from None
        except OSError as error:
            reason = error.strerror or "the connection broke off"
            raise Unreachable(f"cannot reach tei-manager at {self.url}: {reason}") from None
        except http.client.HTTPException:
            raise Unreachable(f"what answers at {self.url} is not tei-manager: no HTTP") from None
        finally:
            connection.close()


def instance_path(name: str, *more: str) -> str:
    """`/instances/NAME/…` with the name made safe for a path."""
    return "/".join(("/instances", quote(name, safe=""), *more))


def read_error(status: int, answer: object) -> ErrorAnswer:
    """An error answer of the control API or of an OpenAI route; anything else becomes `HTTP_<status>`."""
    fields = answer if isinstance(answer, dict) else {}
    error = fields.get("error")
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or f"HTTP_{status}"
        return ErrorAnswer(status, str(code), str(error.get("message") or "no reason given"))
    if not isinstance(error, str):
        phrase = http.client.responses.get(status, "an error without a reason")
        return ErrorAnswer(status, f"HTTP_{status}", phrase)
    details = fields.get("details")
    problems = details.get("problems") if isinstance(details, dict) else None
    told = [
        f"{problem.get('path', '')}: {problem.get('message', '')}"
        for problem in (problems if isinstance(problems, list) else [])
        if isinstance(problem, dict)
    ]
    # the first problem is the text already
    return ErrorAnswer(status, str(fields.get("code") or f"HTTP_{status}"), error, told if len(told) > 1 else ())
