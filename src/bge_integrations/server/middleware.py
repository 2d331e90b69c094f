"""ASGI middleware: one reading of the path, and limits on bodies."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Collection

from starlette.responses import Response

from ..errors import ConfigError
from .asgi import App, Message, Receive, Scope, Send, respond, route_path
from .limits import APIError, Limits
from .metrics import Metrics

# A client that has not finished sending sees a reset instead of its 413, so some of what it sends is read and dropped.
_DRAIN_BYTES = 64 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ABSOLUTE = re.compile(r"https?://([^/]*)", re.IGNORECASE)
_ROOT_PATH = re.compile(r"(/[\w~-][\w.~-]*)+", re.ASCII)


class OnePath:
    """Normalises path and method once, so that middleware and routes cannot read them differently.

    HEAD is handled as GET, a slash at the end of a path is dropped, and control characters are replaced: ``$`` in the
    router's patterns matches before a line feed, so that ``/embed%0a`` would be a route that no middleware knows.
    Of a whole URL as target (RFC 9112, 3.2.2), which clients of a proxy send, the path counts, and its host is Host.

    Args:
        app: what comes next.
        root_path: the prefix under which clients see the server. A path is read with and without it: some proxies strip
            it and others do not, and a probe does not come through the proxy.
    """

    def __init__(self, app: App, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if absolute := _ABSOLUTE.match(scope["path"]):
            scope = _origin_form(scope, absolute)
        if self.root_path:
            # A page's links are relative: at the bare prefix they would miss its last part.
            if scope["path"] == self.root_path and scope["method"] in ("GET", "HEAD"):
                location = f"{self.root_path.rpartition('/')[2]}/"
                return await Response(status_code=307, headers={"location": location})(scope, receive, send)
            scope = below(self.root_path, scope)
        path = route_path(scope)
        root = scope["path"].removesuffix(path)
        settled = {**scope, "path": root + (_CONTROL.sub("\ufffd", path).rstrip("/") or "/")}
        if scope["method"] != "HEAD":
            return await self.app(settled, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        return await self.app({**settled, "method": "GET"}, receive, without_body)


def _origin_form(scope: Scope, absolute: re.Match[str]) -> Scope:
    host = absolute[1].rpartition("@")[2].encode("utf-8", "replace")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = scope["path"][absolute.end() :] or "/"
    return {**scope, "path": path, "raw_path": path.encode(), "headers": [(b"host", host), *headers]}


def below(root_path: str, scope: Scope) -> Scope:
    """Return the scope as ASGI wants it below a prefix: the path begins with it, once."""
    path = scope["path"]
    whole = path if path.startswith(f"{root_path}/") else root_path + path
    return {**scope, "root_path": root_path, "path": whole}


def check_root_path(root_path: str, routes: Collection[str]) -> str:
    """Return a prefix without the slash at its end.

    Raises:
        ConfigError: it is not a path, or a route begins with it, so that it could not be told from the route.
    """
    path = root_path.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ConfigError(f"root_path must be a path such as '/ml/bge', not {root_path!r}")
    if path and any(f"{route}/".startswith(f"{path}/") for route in routes):
        raise ConfigError(f"root_path {root_path!r} is a path of the server's own: choose another prefix")
    return path


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
        # As two tasks: while the model computes, only a read of the socket tells that the client has gone.
        answer = asyncio.ensure_future(self.app(scope, incoming.replay, send))
        gone = asyncio.ensure_future(incoming.until_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
        finally:
            # Waited for below: nothing of this request may read or write when the connection serves the next one.
            gone.cancel()
            answer.cancel()
            await asyncio.wait({answer, gone})

    def _head_error(self, scope: Scope) -> APIError | None:
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if self._active > self.limits.connections:
            return APIError(503, "too many requests at once", headers={"retry-after": "2"})
        if (coding := headers.get(b"content-encoding", b"identity").strip().lower()) not in (b"identity", b""):
            said = f"send the body as it is, without Content-Encoding: {coding.decode('ascii', 'replace')[:20]}"
            return APIError(415, said, headers={"accept-encoding": "identity"})
        # h11 and httptools have refused a length that is no number before this is called.
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
        return APIError(413, f"the body is larger than {self.limits.body_bytes} bytes: send less text in one request")

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
