"""Who is let in: clients with a key, and on a trusting server only those that name a local host."""

from __future__ import annotations

import hmac
import ipaddress
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.routing import Match

from ..errors import BGEError, ConfigError
from .asgi import App, Receive, Scope, Send, respond, route_path
from .limits import APIError
from .logs import log

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/info", "/docs", "/openapi.json"})
"""Paths that need no key: they say nothing about the model's work."""


class Keys:
    """The keys that let clients in.

    Args:
        source: the keys, or a function that returns them and is asked again by ``reload``.

    Raises:
        ConfigError: a key is empty, a string stands where a list belongs, or the function failed.
    """

    def __init__(self, source: Sequence[str] | Callable[[], Sequence[str]]) -> None:
        self._source = source
        self._keys = self._read()

    def _read(self) -> list[bytes]:
        keys = self._asked(self._source) if callable(self._source) else self._source
        check_list("api_keys", keys)
        if not all(key.strip() for key in keys):
            raise ConfigError("an empty key would let everybody in: remove it, or set a real one")
        if callable(self._source) and not keys:  # it would let everybody in after a reload
            raise ConfigError("the function that was passed as api_keys returned no keys")
        return [key.strip().encode() for key in keys]

    @staticmethod
    def _asked(source: Callable[[], Sequence[str]]) -> Sequence[str]:
        try:
            return source()
        except BGEError:
            raise
        except Exception as error:  # noqa: BLE001 - its message may hold a key
            raise ConfigError(f"the function that was passed as api_keys raised {type(error).__name__}") from None

    @property
    def reloadable(self) -> bool:
        """Whether the keys come from a function."""
        return callable(self._source)

    def reload(self) -> None:
        """Ask for the keys again; those of before stay where that fails."""
        try:
            self._keys = self._read()
            log.info("the keys were read again; there are %d", len(self._keys))
        except BGEError as error:
            log.error("the previous keys stay valid: %s", error)

    def reload_soon(self, *_: Any) -> None:
        """Reload on a thread: in a signal handler, a log line could interrupt another."""
        try:
            threading.Thread(target=self.reload, name="bge-keys").start()
        except RuntimeError as error:  # raised here, it would end the server
            log.error("the previous keys stay valid: no thread to read them again (%s)", error)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"Keys({len(self._keys)})"

    def allow(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Return whether the headers hold a key; a near miss takes as long as a far one."""
        scheme, _, token = dict(headers).get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(token.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


def check_list(name: str, values: Sequence[str]) -> None:
    """Refuse a string, each of whose characters would be a key, a name or an origin.

    Raises:
        ConfigError: a string stands where a list belongs.
    """
    if isinstance(values, str):
        raise ConfigError(f"{name} must be a list of strings, not one string")


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
        advice = "without keys, this server accepts only local host names: give it a key, or allow this name's origin"
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

    def __init__(self, app: App, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or route_path(scope) in OPEN_PATHS or self.keys.allow(scope["headers"]):
            return await self.app(scope, receive, send)
        error = APIError(404, "Not Found")
        if any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].routes):
            error = APIError(401, "send a key: 'Authorization: Bearer ...'", headers={"www-authenticate": "Bearer"})
        return await respond(scope, send, error)
