"""ASGI middleware: access log, Host check, authentication, limits on bodies. The outermost reads the path for all."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from starlette.routing import Match

from .limits import APIError, Limits
from .metrics import Metrics
from .responses import error_response

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("bge_integrations.server")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/info", "/docs", "/openapi.json"})
"""Paths that need no key: they say nothing about the model's work."""
# A client that has not finished sending sees a reset instead of its 413, so some of what it sends is read and dropped.
_DRAIN_BYTES = 64 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def route_path(scope: Scope) -> str:
    """Return the path below the root path, which an app has that is mounted in another one or behind a prefix."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    rest: str = path[len(root) :] if root and (path + "/").startswith(root + "/") else path
    return rest or "/"


class OnePath:
    """Normalises path and method once, so that middleware and routes cannot read them differently.

    HEAD is handled as GET, a slash at the end of a path is dropped, and control characters are replaced: ``$`` in the
    router's patterns matches before a line feed, so that ``/embed%0a`` would be a route that no middleware knows.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = route_path(scope)
        root = scope["path"].removesuffix(path)
        settled = {**scope, "path": root + (_CONTROL.sub("\ufffd", path).rstrip("/") or "/")}
        if scope["method"] != "HEAD":
            return await self.app(settled, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        return await self.app({**settled, "method": "GET"}, receive, without_body)


class AccessLog:
    """Counts every request and logs one line for it, without texts or keys; turns a crash into a 500."""

    def __init__(self, app: App, metrics: Metrics, routes: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                # Counted before it is sent, so that a client that has its answer finds it in /metrics.
                self._record(scope, status, perf_counter() - start)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - uvicorn would log its message, which may hold a text or a key
            log.error("%s in %s", type(error).__name__, self._route(scope))
            if not status:
                await respond(scope, watched, APIError(500, f"the server failed ({type(error).__name__})"))
        if not status:
            self._record(scope, status, perf_counter() - start)
        return None

    def _route(self, scope: Scope) -> str:
        # The path is the client's to choose: only known ones become labels or reach the log.
        path = route_path(scope)
        return path if path in self.routes else "other"

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route(scope)
        self.metrics.requests.labels(route, str(status or "gone")).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        texts = scope.get("state", {}).get("bge_texts", "")
        log.info("%s %s %s %.0f ms%s", scope["method"][:8], route, status or "gone", 1000 * seconds, texts)


class LocalHosts:
    """Against DNS rebinding: accepts addresses, names outside the public DNS and hosts of trusted origins as Host.

    A server on loopback without keys trusts every process of its machine. A web page could make its own name resolve
    to 127.0.0.1; the browser would then take this server for the page's origin.
    """

    def __init__(self, app: App, origins: Collection[str]) -> None:
        self.app = app
        self.trusted = {urlsplit(origin).hostname for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if scope["type"] != "http" or all(map(self.allows, hosts)):
            return await self.app(scope, receive, send)
        advice = "without keys, this server answers to local names only: give it a key, or allow the name's origin"
        return await respond(scope, send, APIError(421, advice), close=True)

    def allows(self, host: str) -> bool:
        """Return whether a Host header, with or without a port, is one of this machine or network."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            local = "." not in name or name.endswith((".localhost", ".local", ".internal")) or name in self.trusted
            return local or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class Authentication:
    """Requires an API key outside ``OPEN_PATHS``. Unknown paths are a 404 with or without one."""

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.strip().encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or route_path(scope) in OPEN_PATHS or self.allows(scope["headers"]):
            return await self.app(scope, receive, send)
        error = APIError(404, "Not Found")
        if any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].routes):
            error = APIError(401, "send a key: 'Authorization: Bearer ...'", headers={"www-authenticate": "Bearer"})
        return await respond(scope, send, error)

    def allows(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Return whether the headers hold a key; a near miss takes as long as a far one."""
        scheme, _, token = dict(headers).get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(token.strip(), key) for key in self.keys]
        return scheme.lower() == b"bearer" and any(matches)


class BodyLimits:
    """Passes a request on once its body has arrived: complete, in time, not too large, and not too many at once.

    Applies to every path, so that no route reads a body without bounds. Bodies of ``json_paths`` must be JSON.
    """

    def __init__(self, app: App, limits: Limits, metrics: Metrics, json_paths: Collection[str]) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.json_paths = frozenset(json_paths)
        self._held = 0
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["method"] in ("GET", "OPTIONS"):
            return await self.app(scope, receive, send)
        incoming = Incoming(receive)
        self._active += 1
        try:
            error = await self._read(scope, incoming)
            if error is not None:
                await incoming.drop(min(5.0, self.limits.body_seconds))
                await respond(scope, send, error, close=True)
            elif not incoming.gone:
                await self._answer(scope, incoming, send)
        finally:
            self._active -= 1
            self._hold(-len(incoming.body))

    async def _read(self, scope: Scope, incoming: Incoming) -> APIError | None:
        """Read the body, or return why not."""
        error = self._head_error(scope)
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while error is None and incoming.more:
                    self._hold(await incoming.read())
                    error = self._size_error(incoming)
        except TimeoutError:
            incoming.more = False
            return APIError(408, f"the body did not arrive within {self.limits.body_seconds:g} s")
        return error

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Run the routes; stop when the client hangs up, as one that gave up tries again and would be served twice."""
        answer = asyncio.ensure_future(self.app(scope, incoming.replay, send))
        gone = asyncio.ensure_future(incoming.until_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
        finally:
            gone.cancel()
            answer.cancel()
            await asyncio.wait({answer, gone})

    def _head_error(self, scope: Scope) -> APIError | None:
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if self._active > self.limits.connections:
            return APIError(503, "too many requests at once", headers={"retry-after": "2"})
        if int(headers.get(b"content-length", b"0")) > self.limits.body_bytes:
            return self._too_large()
        if content_type != b"application/json" and route_path(scope) in self.json_paths:
            return APIError(415, "send the body as JSON, with 'Content-Type: application/json'")
        return None

    def _size_error(self, incoming: Incoming) -> APIError | None:
        if len(incoming.body) > self.limits.body_bytes:
            return self._too_large()
        if self._held > self.limits.queued_bytes:
            return APIError(429, "too many large requests at once", headers={"retry-after": "2"})
        return None

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is over {self.limits.body_bytes} bytes: send less text in one request")

    def _hold(self, size: int) -> None:
        self._held += size
        self.metrics.held.set(self._held)


class Incoming:
    """The body of one request, as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self.body = bytearray()
        self.more = True
        self.gone = False
        self._receive = receive
        self._replayed = False

    async def read(self) -> int:
        """Keep the next part and return its size."""
        part = await self._next()
        self.body += part
        return len(part)

    async def drop(self, seconds: float) -> None:
        """Read and forget what is still to come, for a while."""
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.more and dropped < _DRAIN_BYTES:
                    dropped += len(await self._next())

    async def _next(self) -> bytes:
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.more = not self.gone and message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def until_gone(self) -> None:
        """Wait until the client hangs up."""
        while not self.gone:
            await self._next()

    async def replay(self) -> Message:
        """Give the body to the routes in one piece."""
        if self._replayed:
            return await self._receive()
        self._replayed = True
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}


async def respond(scope: Scope, send: Send, error: APIError, *, close: bool = False) -> None:
    """Answer with an error, and hang up where the rest of the request is not wanted."""
    if close:
        error.headers["connection"] = "close"

    async def no_body() -> Message:
        return {"type": "http.disconnect"}

    await error_response(route_path(scope), error)(scope, no_body, send)
