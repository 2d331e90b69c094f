"""One pool of connections to one host, through the openai SDK's async client, with bodies read to a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cards import ModelCard
from ..errors import BadAnswerError, HostError, HostUnavailableError, MissingExtraError
from .endpoint import Endpoint, Limits
from .refusal import quote, refusal

_JSON = ("application/json", "text/json", "application/problem+json")


class Connection:
    """Sends requests, once each: the SDK's own retries are off. Used on one event loop only."""

    def __init__(self, endpoint: Endpoint, limits: Limits, card: ModelCard) -> None:
        self._endpoint, self._card = endpoint, card
        self._sdk = _sdk()
        key = endpoint.key()
        omit = self._sdk.Omit()
        self._headers: dict[str, Any] = {
            "X-Stainless-Raw-Response": "stream",  # the SDK's own switch for reading the body ourselves
            # The SDK would read these from the environment and tell any host.
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
            **({} if key else {"Authorization": omit}),
        }
        timeout = self._sdk.Timeout(limits.read_timeout, connect=limits.connect_timeout, pool=None)
        self._client = self._sdk.AsyncOpenAI(
            api_key=key or "none",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=self._sdk.DefaultAsyncHttpxClient(
                timeout=timeout, follow_redirects=False, event_hooks={"response": [_refuse_packed_errors]}
            ),
        )

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
        options: dict[str, Any] = {"headers": self._headers, "follow_redirects": False}
        sdk, kind = self._sdk, self._sdk.AsyncStream
        try:
            if payload is None:
                return await self._client.get(path, cast_to=kind, options=options)
            return await self._client.post(path, cast_to=kind, options=options, body=payload)
        except sdk.APIStatusError as error:
            said = error.response
            return refusal(said.status_code, said.headers, said.content, self._endpoint, self._card)
        except sdk.APITimeoutError:
            return self._unreachable("did not answer in time")
        except sdk.OpenAIError as error:
            return self._unreachable(_cause(error))

    async def _read(self, answer: Any, bound: int) -> bytes:
        parts: list[bytes] = []
        size, broken = 0, ""
        try:
            async for part in answer.iter_bytes():
                size += len(part)
                if size > bound:
                    break
                parts.append(part)
        except Exception as error:  # noqa: BLE001 - httpx 1 and 2 raise types of their own, neither may be imported
            broken = type(error).__name__
        if broken:
            raise self._unreachable(f"broke off its answer ({broken})")
        if size > bound:
            raise self._bad(f"more than {bound:,} bytes came back, which is no answer to this request")
        return b"".join(parts)

    def _check_type(self, headers: Mapping[str, str], body: bytes) -> None:
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind in _JSON or body.lstrip()[:1] in (b"{", b"["):
            return
        raise self._bad(f"{kind} came back instead of JSON: {quote(body, self._endpoint)!r}", broken=True)

    def _bad(self, what: str, *, broken: bool = False) -> BadAnswerError:
        name, model = self._endpoint.name, self._card.id
        return BadAnswerError(f"{name}, {model!r}: {what}", provider=name, model=model, status=200, broken=broken)

    def _unreachable(self, what: str) -> HostUnavailableError:
        name, model = self._endpoint.name, self._card.id
        return HostUnavailableError(f"{name} at {self._endpoint.base_url} {what}", provider=name, model=model)

    async def close(self) -> None:
        """Close the pool."""
        await self._client.close()


def _sdk() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("remote hosts need the openai package: pip install openai") from error
    return openai


async def _refuse_packed_errors(response: Any) -> None:
    # The SDK reads an error's body to its end before it raises; a packed one could unfold without end.
    if response.status_code >= 300 and response.headers.get("content-encoding", "identity") != "identity":
        status = response.status_code
        await response.aclose()
        raise _sdk().OpenAIError(f"packed body of a {status}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return f"could not be reached ({type(cause).__name__}: {cause})" if cause else "could not be reached"
