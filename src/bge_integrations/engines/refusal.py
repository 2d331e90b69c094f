"""What a failed request means: which error it is, and whether sending it again could help."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from ..cards import ModelCard
from ..errors import (
    AuthenticationError,
    HostError,
    HostUnavailableError,
    QuotaError,
    RateLimitError,
    RequestRefusedError,
    TooLargeError,
)
from .endpoint import Endpoint

_SIZE = re.compile(
    r"batch|too (large|many|long|big)|exceed|at most|larger than|longer than|context length|token limit|"
    r"max(imum)?[ _-]?(\w+[ _-])?(size|length|tokens|inputs|items)|maximum",
    re.IGNORECASE,
)
_TRANSIENT = (408, 409, 425, 429)


def refusal(status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, card: ModelCard) -> HostError:
    """Return the error for an answer that is not a success; it says what to do next and never holds the key."""
    said = quote(body, endpoint)
    kind, advice = _kind(status, said, headers, endpoint)
    return kind(
        f"{endpoint.name} answered {status} for {card.id!r}{': ' if said else ''}{said}{advice}",
        provider=endpoint.name,
        model=card.id,
        status=status,
        retry_after=retry_after(headers, body),
    )


def _kind(status: int, said: str, headers: Mapping[str, str], endpoint: Endpoint) -> tuple[type[HostError], str]:
    names = " or ".join(endpoint.provider.key_env) or "BGE_API_KEY"
    if status in (401, 403):
        return AuthenticationError, f"; is the key right? It is read from {names}, or passed as api_key="
    if status == 402 or (status == 429 and "insufficient_quota" in said):
        return QuotaError, "; the account has no credit left"
    if status == 429:
        return RateLimitError, "; requests_per_minute= or a smaller max_concurrency= asks more slowly"
    if status in _TRANSIENT or status >= 500:
        return HostUnavailableError, ""
    if 300 <= status < 400:
        where = headers.get("location", "elsewhere").partition("?")[0]
        return RequestRefusedError, f"; it redirects to {where[:200]}, which is not followed: is base_url right?"
    if status == 404:
        return RequestRefusedError, _not_found(endpoint)
    if status == 413 or (status in (400, 422) and _SIZE.search(said)):
        return TooLargeError, ""
    return RequestRefusedError, ""


def _not_found(endpoint: Endpoint) -> str:
    offers = ", ".join(offer.wire for offer in endpoint.provider.offers)
    known = f" it is known to serve {offers};" if offers else ""
    version = "" if "/v1" in endpoint.base_url else " does base_url= lack its /v1?"
    return (
        f"; {endpoint.wire_model!r} was asked for at {endpoint.base_url};{known} wire_model= changes the name.{version}"
    )


def quote(body: bytes, endpoint: Endpoint) -> str:
    """Return at most 200 characters of what a host said, on one line, without the key."""
    text = " ".join(body[:4000].decode("utf-8", "replace").split())
    return endpoint.scrub(text)[:200]


def retry_after(headers: Mapping[str, str], body: bytes = b"") -> float | None:
    """Return the seconds that a host asks to wait, from a header (seconds, milliseconds, date) or its error object."""
    wait = _number(headers.get("retry-after-ms"), 0.001)
    stated = headers.get("retry-after")
    if wait is None:
        wait = _number(stated, 1.0)
    if wait is None and stated:
        wait = _until(stated)
    if wait is None:
        wait = _in_body(body)
    return wait


def _number(text: Any, unit: float) -> float | None:
    try:
        value = float(text) * unit
    except (TypeError, ValueError):
        return None
    return max(value, 0.0) if math.isfinite(value) else None


def _until(text: str) -> float | None:
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _in_body(body: bytes) -> float | None:
    if b"retry_after" not in body:
        return None
    try:
        return _number(orjson.loads(body)["error"]["retry_after_s"], 1.0)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
