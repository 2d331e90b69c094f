"""What stands in front of the routes, in plain ASGI: keys, sizes, slow bodies, the log line."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from time import perf_counter
from typing import Any

from .answers import Refusal, error_response
from .limits import Limits
from .metrics import Metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("bge_integrations.server")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/info", "/docs", "/openapi.json"})
# A client that has not finished sending sees a reset instead of its 413, so some of what it sends is read and dropped.
_DRAIN_BYTES = 64 << 20


class Observed:
    """Counts every request and logs one line for it, without texts or keys; turns a crash into a 500."""

    def __init__(self, app: App, metrics: Metrics, routes: Sequence[str]) -> None:
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
                # Before it is sent: who has an answer finds it counted.
                self._record(scope, status, perf_counter() - start)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - uvicorn would log its message, which may hold a text or a key
            log.error("%s in %s", type(error).__name__, self._route(scope))
            if not status:
                await respond(scope, watched, Refusal(500, f"the server failed ({type(error).__name__})"))
        if not status:
            self._record(scope, status, perf_counter() - start)
        return None

    def _route(self, scope: Scope) -> str:
        # The path is the client's to choose: only known ones become labels or reach the log.
        return scope["path"] if scope["path"] in self.routes else "other"

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route(scope)
        self.metrics.requests.labels(route, str(status or "gone")).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        texts = scope.get("state", {}).get("bge_texts", "")
        log.info("%s %s %s %.0f ms%s", scope["method"][:8], route, status or "gone", 1000 * seconds, texts)


class Keys:
    """Lets in who has a key; what tells nothing about the model's work stays open."""

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self.allows(scope["headers"]):
            return await self.app(scope, receive, send)
        refusal = Refusal(401, "send a key: 'Authorization: Bearer ...'", headers={"www-authenticate": "Bearer"})
        return await respond(scope, send, refusal)

    def allows(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Say whether the headers hold a key; takes as long for a near miss as for a far one."""
        scheme, _, given = dict(headers).get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self.keys]
        return scheme.lower() == b"bearer" and any(matches)


class Bodies:
    """Hands a request on once its body is here: whole, in time, not too large, JSON."""

    def __init__(self, app: App, limits: Limits, metrics: Metrics, paths: Collection[str]) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.paths = frozenset(paths)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self.paths:
            return await self.app(scope, receive, send)
        incoming = Incoming(receive)
        try:
            refusal = await self._take(scope, incoming)
            if refusal is not None:
                await incoming.drop(min(5.0, self.limits.body_seconds))
                await respond(scope, send, refusal, close=True)
            elif not incoming.gone:
                await self._answer(scope, incoming, send)
        finally:
            self._hold(-len(incoming.body))

    async def _take(self, scope: Scope, incoming: Incoming) -> Refusal | None:
        """Read the body, or say why not."""
        refusal = _head_refusal(scope, self.limits)
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while refusal is None and incoming.more:
                    self._hold(await incoming.read())
                    refusal = self._size_refusal(incoming)
        except TimeoutError:
            incoming.more = False
            return Refusal(408, f"the body did not arrive within {self.limits.body_seconds:g} s")
        return refusal

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

    def _size_refusal(self, incoming: Incoming) -> Refusal | None:
        if len(incoming.body) > self.limits.body_bytes:
            return _too_large(self.limits)
        if self._held > self.limits.queued_bytes:
            return Refusal(429, "too many large requests at once", headers={"retry-after": "2"})
        return None

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
        """Take the next part and return its size."""
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


def _head_refusal(scope: Scope, limits: Limits) -> Refusal | None:
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if int(headers.get(b"content-length", b"0")) > limits.body_bytes:
        return _too_large(limits)
    if kind != b"application/json":
        return Refusal(415, "send the body as JSON, with 'Content-Type: application/json'")
    return None


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the body is over {limits.body_bytes} bytes: send fewer texts at a time")


async def respond(scope: Scope, send: Send, refusal: Refusal, *, close: bool = False) -> None:
    """Answer with an error, and hang up where the rest of the request is not wanted."""
    if close:
        refusal.headers["connection"] = "close"

    async def no_body() -> Message:
        return {"type": "http.disconnect"}

    await error_response(scope["path"], refusal)(scope, no_body, send)
