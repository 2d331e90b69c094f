"""One pool of connections to one host, through the openai SDK's async client, with bodies read to a bound."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import ssl
from collections.abc import AsyncIterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from ..errors import (
    AuthenticationError,
    BadAnswerError,
    HostError,
    HostUnavailableError,
    RequestRefusedError,
)
from ..keys import Hidden
from .client import open_client
from .endpoint import Endpoint, HostLimits
from .responses import quote, refusal

_JSON = ("application/json", "text/json", "application/problem+json")


def answer_bound(count: int, dimensions: int) -> int:
    """Return how many bytes an honest answer may have: 64 for a number, pretty-printed, and a megabyte for the rest."""
    return 64 * count * dimensions + 2**20


class Transport:
    """Sends requests, once each: the SDK's own retries are off. Used on one event loop only."""

    def __init__(self, endpoint: Endpoint, limits: HostLimits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._opening = asyncio.Lock()  # first calls that come together open one client
        self._sdk: Any = None
        self._client: Any = None
        self._headers: dict[str, Any] = {}
        self._body = "content"

    async def send(self, path: str, payload: Mapping[str, Any] | None, bound: int) -> bytes:
        """Post JSON (or get, without a payload) and return the body.

        Raises:
            HostError: the host could not be reached, refused, or answered with something else than JSON.
            ConfigError: the environment's proxies or certificates cannot be used, or the key cannot be sent.
        """
        answer = await self._ask(path, payload)
        if isinstance(answer, AuthenticationError) and answer.status == 401 and self._endpoint.key_changes:
            answer = await self._ask(path, payload)  # with a key asked for anew
        # Raised out here: an exception of the SDK in its context would carry the request, and so the key.
        if isinstance(answer, HostError):
            raise answer
        try:
            body = await self._read(answer.response, bound)
        finally:
            await answer.close()
        self._check_type(answer.response.headers, body)
        return body

    async def _ask(self, path: str, payload: Mapping[str, Any] | None) -> Any:
        await self._open()
        sdk, headers = self._sdk, self._headers
        if self._endpoint.key_changes:
            key = await asyncio.to_thread(self._endpoint.secret)  # it may ask an identity service
            headers = {**headers, **self._authorization(key)}
        # A stream, so that the body is left to us; its events are never asked for.
        how = {
            "cast_to": object,
            "stream": True,
            "stream_cls": sdk.AsyncStream[object],
            "options": {"headers": headers},
        }
        try:
            if payload is None:
                return await self._client.get(path, **how)
            # As bytes: the SDK's own encoder takes a hundred times as long as orjson.
            return await self._client.post(path, **{self._body: orjson.dumps(payload)}, **how)
        except sdk.APIStatusError as error:
            response = error.response
            failure = refusal(response.status_code, response.headers, response.content, self._endpoint)
            via = _proxy_of(self._endpoint) if failure.status in (407, 502, 503, 504) else ""
            return failure.add(f"; it may be the proxy in {via} that answered") if via else failure
        except Exception as error:  # noqa: BLE001 - SDK 2 wraps whatever its HTTP client raises, SDK 3 lets some through
            return self._unreachable(error)

    def _authorization(self, key: str | None) -> dict[str, Any]:
        if any(name.lower() == "authorization" for name in self._endpoint.headers):
            return {}  # the user's own
        return {"Authorization": f"Bearer {key}" if key else self._sdk.Omit()}

    async def _open(self) -> None:
        async with self._opening:
            if self._client is None:
                # Hidden: opening may fail, and tracebacks with locals would show it.
                key = Hidden(None if self._endpoint.key_changes else self._endpoint.secret())
                # In a thread: importing the SDK and reading certificates would block the loop for half a second.
                opened = await asyncio.to_thread(open_client, self._endpoint, self._limits)
                self._sdk, self._client, headers = opened
                # SDK 2.0 takes bytes as the body; later ones warn of that and have an argument for them.
                self._body = "content" if "content" in inspect.signature(self._client.post).parameters else "body"
                self._headers = {**headers, **self._authorization(key.get_secret_value())}

    async def _read(self, response: Any, bound: int) -> bytes:
        failure: HostError | None = None
        body = b""
        try:
            body = await _up_to(bound + 1, response.aiter_bytes())
        except Exception as error:  # noqa: BLE001 - httpx 1 and 2 raise types of their own, neither may be imported
            failure = self._broken(error)
        if failure is not None:
            raise failure
        if len(body) > bound:
            raise self._bad(f"more than {bound:,} bytes were returned, which cannot be a response to this request")
        return body

    def _check_type(self, headers: Mapping[str, str], body: bytes) -> None:
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind in _JSON or body.lstrip()[:1] in (b"{", b"["):
            return
        raise self._bad(f"{kind} was returned instead of JSON: {quote(body, self._endpoint)!r}", retryable=True)

    def _bad(self, what: str, *, retryable: bool = False) -> BadAnswerError:
        return BadAnswerError(f"{self._endpoint.name}: {what}", status=200, retryable=retryable)

    def _broken(self, error: Exception) -> HostError:
        failure = HostUnavailableError(f"{self._endpoint.name} broke off its response ({type(error).__name__})")
        failure.timed_out = _is_timeout(error)
        return failure

    def _unreachable(self, error: Exception) -> HostError:
        """Return the error of a request that got no answer."""
        where = f"{self._endpoint.name} at {self._endpoint.address}"
        via = _proxy_of(self._endpoint)
        if any(isinstance(one, ssl.SSLCertVerificationError) for one in _chain(error)):
            return RequestRefusedError(
                f"{where} has a certificate that is not trusted ({_why(error, self._endpoint)}); for a "
                "certificate authority of your own, set SSL_CERT_FILE to the file of its certificates"
            )
        if via and "407" in str(error.__cause__):
            return RequestRefusedError(f"the proxy in {via} requires another user name or password (407)")
        if _is_timeout(error):
            failure = HostUnavailableError(f"{where} did not answer in time")
            failure.timed_out = True
            return failure
        through = f", through the proxy in {via}" if via else ""
        late = _is_connect_timeout(error)
        why = f"no connection in {self._limits.connect_timeout:g} s" if late else _why(error, self._endpoint)
        failure = HostUnavailableError(
            f"{where} could not be reached{through} ({why}): is it running, and is the address right?"
        )
        failure.unconnected = late or any(_is_unconnected(one) for one in _chain(error))
        return failure

    async def close(self) -> None:
        """Close the pool."""
        if self._client is not None:
            await self._client.close()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_timeout(error: BaseException) -> bool:
    """Tell whether the host was reached and did not answer."""
    kinds = [type(one).__name__ for one in _chain(error)]
    slow = any(isinstance(one, TimeoutError) for one in _chain(error)) or "ReadTimeout" in kinds
    return slow and "ConnectTimeout" not in kinds


def _is_connect_timeout(error: BaseException) -> bool:
    # On aiohttp the SDK calls every failed connection a ConnectTimeout.
    kinds = [type(one).__name__ for one in _chain(error)]
    return "ConnectTimeout" in kinds and any(isinstance(one, TimeoutError) for one in _chain(error))


def _is_unconnected(error: BaseException) -> bool:
    """Tell whether nothing listens there, the name is not known, or no route leads there."""
    known = (ConnectionRefusedError, socket.gaierror)
    return isinstance(error, known) or getattr(error, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH)


def _why(error: BaseException, endpoint: Endpoint) -> str:
    """Name the cause. The words of an OSError alone are quoted: HTTP libraries quote headers, and so keys."""
    causes = list(_chain(error))
    system = next((one for one in reversed(causes) if isinstance(one, OSError)), None)
    if system is None:
        return type(causes[-1]).__name__
    return quote(f"{type(system).__name__}: {system}".encode(), endpoint)


def _proxy_of(endpoint: Endpoint) -> str:
    """Return the variable that names the proxy on the way, or ``""``."""
    parts = urlsplit(endpoint.base_url)
    if endpoint.on_this_machine or proxy_bypass(parts.hostname or ""):
        return ""
    proxies = getproxies()
    return next((f"{kind.upper()}_PROXY" for kind in (parts.scheme, "all") if kind in proxies), "")


async def _up_to(bound: int, chunks: AsyncIterable[bytes]) -> bytes:
    parts, size = [], 0
    async for part in chunks:
        parts.append(part)
        size += len(part)
        if size >= bound:
            break
    return b"".join(parts)
