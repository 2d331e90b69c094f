"""ASGI's types, the path that a route has, and an error as an answer: what all middleware shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .limits import APIError
from .responses import error_response

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def route_path(scope: Scope) -> str:
    """Return the path below the root path, which an app has that is mounted in another one or behind a prefix."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    rest: str = path[len(root) :] if root and (path + "/").startswith(root + "/") else path
    return rest or "/"


async def respond(scope: Scope, send: Send, error: APIError, *, close: bool = False) -> None:
    """Answer with an error, and hang up where the rest of the request is not wanted."""
    if close:
        error.headers["connection"] = "close"

    async def no_body() -> Message:
        return {"type": "http.disconnect"}

    await error_response(route_path(scope), error)(scope, no_body, send)
