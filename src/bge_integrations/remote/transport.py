"""One pool of connections to one host, through the openai SDK's async client, with bodies read to a bound."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import Any

from ..catalog.records import ModelCard
from ..errors import BadAnswerError, HostError, HostUnavailableError, MissingExtraError
from .endpoint import Endpoint, Limits
from .responses import quote, refusal

_JSON = ("application/json", "text/json", "application/problem+json")
_LONGEST_REFUSAL = 65_536


def answer_bound(count: int, dimensions: int) -> int:
    """Return how many bytes an honest answer may have: 64 for a number, pretty-printed, and a megabyte for the rest."""
    return 64 * count * dimensions + 2**20


class Connection:
    """Sends requests, once each: the SDK's own retries are off. Used on one event loop only."""

    def __init__(self, endpoint: Endpoint, limits: Limits, card: ModelCard) -> None:
        self._endpoint, self._card = endpoint, card
        self._sdk = _sdk()
        key = endpoint.key()
        timeout = self._sdk.Timeout(limits.read_timeout, connect=limits.connect_timeout, pool=None)
        self._client = _client_class(self._sdk, key)(
            api_key=key or "none",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=_http_client(self._sdk, timeout),
        )
        # The first is the SDK's own switch for leaving the body to us.
        headers = {"X-Stainless-Raw-Response": "stream", **({} if key else {"Authorization": self._sdk.Omit()})}
        self._options = {"headers": headers, "follow_redirects": False}

    async def send(self, path: str, payload: Mapping[str, Any] | None, bound: int) -> bytes:
        """Post JSON (or get, without a payload) and return the body.

        Raises:
            HostError: the host could not be reached, refused, or answered with something else than JSON.
        """
        answer = await self._ask(path, payload)
        # Raised out here: an exception of the SDK in its context would carry the request, and so the key.
        if isinstance(answer, HostError):
            raise answer
        try:
            body = await self._read(answer, bound)
        finally:
            await answer.close()
        self._check_type(answer.headers, body)
        return body

    async def _ask(self, path: str, payload: Mapping[str, Any] | None) -> Any:
        sdk, kind = self._sdk, self._sdk.AsyncStream
        try:
            if payload is None:
                return await self._client.get(path, cast_to=kind, options=self._options)
            return await self._client.post(path, cast_to=kind, options=self._options, body=payload)
        except sdk.APITimeoutError as error:
            return self._unreachable(_late(error))
        except Exception as error:  # noqa: BLE001 - SDK 2 wraps whatever its HTTP client raises, SDK 3 lets some through
            cause = error.__cause__ if isinstance(error, sdk.OpenAIError) else error
            if isinstance(cause, _Refused):
                return refusal(cause.status, cause.headers, cause.body, self._endpoint, self._card)
            return self._unreachable(f"could not be reached ({type(cause).__name__}: {cause})")

    async def _read(self, answer: Any, bound: int) -> bytes:
        body, broken = b"", ""
        try:
            body = await _up_to(bound + 1, answer.iter_bytes())
        except Exception as error:  # noqa: BLE001 - httpx 1 and 2 raise types of their own, neither may be imported
            broken = type(error).__name__
        if broken:
            raise self._unreachable(f"broke off its answer ({broken})")
        if len(body) > bound:
            raise self._bad(f"more than {bound:,} bytes came back, which is no answer to this request")
        return body

    def _check_type(self, headers: Mapping[str, str], body: bytes) -> None:
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind in _JSON or body.lstrip()[:1] in (b"{", b"["):
            return
        raise self._bad(f"{kind} came back instead of JSON: {quote(body, self._endpoint)!r}", retryable=True)

    def _bad(self, what: str, **details: Any) -> BadAnswerError:
        name, model = self._endpoint.name, self._card.id
        return BadAnswerError(f"{name}, {model!r}: {what}", provider=name, model=model, status=200, **details)

    def _unreachable(self, what: str) -> HostUnavailableError:
        name, model = self._endpoint.name, self._card.id
        return HostUnavailableError(f"{name} at {self._endpoint.base_url} {what}", provider=name, model=model)

    async def close(self) -> None:
        """Close the pool."""
        await self._client.close()


def _late(error: BaseException) -> str:
    """Say what became of a request that the SDK says timed out: on aiohttp it says so of every failed connection."""
    cause = error.__cause__ and error.__cause__.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
        return f"could not be reached ({type(cause).__name__}: {cause})"
    return "did not answer in time"


def _sdk() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("remote hosts need the openai package: pip install openai") from error
    return openai


def _http_client(sdk: Any, timeout: Any) -> Any:
    """Return the SDK's client on aiohttp where that is installed: half as many texts again per second."""
    options = {"timeout": timeout, "follow_redirects": False, "event_hooks": {"response": [_stop_refusals]}}
    try:
        return sdk.DefaultAioHttpClient(**options)
    except RuntimeError:
        return sdk.DefaultAsyncHttpxClient(**options)


def _client_class(sdk: Any, key: str | None) -> Any:
    """Return an AsyncOpenAI that sends these headers alone.

    The SDK by itself tells any host the OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_ADMIN_KEY and OPENAI_CUSTOM_HEADERS
    that it finds in the environment.
    """
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": f"bge-integrations/{version('bge-integrations')}",
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    return type("Client", (sdk.AsyncOpenAI,), {"default_headers": property(lambda _: headers)})


class _Refused(Exception):
    """An answer other than 2xx, read to a bound; the SDK would read it to its end, however long that is."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


async def _stop_refusals(response: Any) -> None:
    if response.status_code >= 300:
        body = await _up_to(_LONGEST_REFUSAL, response.aiter_bytes())
        raise _Refused(response.status_code, response.headers, body)


async def _up_to(bound: int, chunks: AsyncIterator[bytes]) -> bytes:
    parts, size = [], 0
    async for part in chunks:
        parts.append(part)
        size += len(part)
        if size >= bound:
            break
    return b"".join(parts)
