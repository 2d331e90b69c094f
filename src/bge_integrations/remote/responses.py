"""What a failed request means: which error it is, and whether sending it again could help."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from ..catalog import spellings
from ..catalog.records import ModelCard
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
    r"batch|too[ _](large|many|long|big)|exceed|at most|less than|(larger|longer) than|context length|token limit|"
    r"max(imum)?[ _-]?(\w+[ _-])?(size|length|tokens|inputs|items)|maximum",
    re.IGNORECASE,
)
_BULK = re.compile(r"token|entity|payload|body|bytes|content", re.IGNORECASE)
_QUOTA = re.compile(r"insufficient|quota|billing|credit|balance|funds|payment", re.IGNORECASE)
_TRANSIENT = (408, 409, 424, 425)  # 424: a TEI whose back-end failed


def refusal(status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, card: ModelCard) -> HostError:
    """Return the error for an answer that is not a success; it says what to do next and never holds the key."""
    answer = _json(body)
    wait = retry_after(headers, answer)
    whole = message_in(answer) or body[:4000].decode("utf-8", "replace")
    kind, advice = _kind(status, f"{whole} {_code(answer)}", headers, wait, endpoint, card)
    said = quote(whole.encode(), endpoint)
    # Whether all texts together are too long, rather than too many.
    limit: dict[str, Any] = {"limit": "bytes"} if kind is TooLargeError and _is_bulk(whole) else {}
    return kind(
        f"{endpoint.name} answered {status} for {card.id!r}{': ' if said else ''}{said}{advice}",
        provider=endpoint.name,
        model=card.id,
        status=status,
        retry_after=wait,
        **limit,
    )


def _kind(
    status: int, said: str, headers: Mapping[str, str], wait: float | None, endpoint: Endpoint, card: ModelCard
) -> tuple[type[HostError], str]:
    # "Quota per minute" with a time to wait is a rate limit by another name.
    exhausted = status == 403 or (status == 429 and wait is None)
    if status == 402 or (exhausted and _QUOTA.search(said)):
        return QuotaError, "; the account has no credit or quota left"
    if status in (401, 403):
        return AuthenticationError, _about_keys(endpoint)
    if status == 429:
        return RateLimitError, "; requests_per_minute= or a smaller max_concurrency= asks more slowly"
    if status in _TRANSIENT or status >= 500:
        return HostUnavailableError, ""
    if 300 <= status < 400:
        where = endpoint.scrub(headers.get("location", "elsewhere")).partition("?")[0]
        return RequestRefusedError, f"; it redirects to {where[:200]}, which is not followed: is base_url right?"
    if status == 404:
        return RequestRefusedError, _not_found(endpoint, card)
    if status == 413 or (status in (400, 422) and _SIZE.search(said)):
        return TooLargeError, ""
    return RequestRefusedError, ""


def _is_bulk(said: str) -> bool:
    return bool(_BULK.search(said)) and "batch" not in said.lower()


def _about_keys(endpoint: Endpoint) -> str:
    names = " or ".join(endpoint.provider.key_env) or "BGE_API_KEY"
    return f"; is the key right? It is read from {names}, or passed as api_key="


def _not_found(endpoint: Endpoint, card: ModelCard) -> str:
    offers = ", ".join(offer.wire for offer in endpoint.provider.offers)
    known = f"it is known to serve {offers}" if offers else f"hosts call it {', '.join(spellings(card)[:4])}"
    asked = f"; {endpoint.wire_model!r} was asked for at {endpoint.base_url}; {known}: wire_model= changes the name"
    return asked if re.search(r"/v\d", endpoint.base_url) else f"{asked}; or does base_url= lack its /v1?"


def message_in(answer: Any) -> str:
    """Return what an error object says, in whichever shape hosts have: ``error``, ``detail``, ``message``, lists."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(filter(None, map(message_in, answer[:3])))
    if isinstance(answer, dict):
        found = (message_in(answer[name]) for name in ("error", "errors", "detail", "message", "msg") if name in answer)
        return next(filter(None, found), "")
    return ""


def _code(answer: Any) -> str:
    inner = answer.get("error", answer) if isinstance(answer, dict) else None
    return f"{inner.get('code')} {inner.get('type')}" if isinstance(inner, dict) else ""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def quote(body: bytes, endpoint: Endpoint) -> str:
    """Return at most 200 characters of what a host said, on one line, without the key."""
    text = " ".join(body[:4000].decode("utf-8", "replace").split())
    return endpoint.scrub(text)[:200]


def retry_after(headers: Mapping[str, str], answer: Any = None) -> float | None:
    """Return the seconds that a host asks to wait, from a header (seconds, milliseconds, date) or its error object."""
    wait = _number(headers.get("retry-after-ms"), 0.001)
    stated = headers.get("retry-after")
    if wait is None:
        wait = _number(stated, 1.0)
    if wait is None and stated:
        wait = _until(stated)
    inner = answer.get("error") if isinstance(answer, dict) else None
    if wait is None and isinstance(inner, dict):  # gigarouter
        wait = _number(inner.get("retry_after_s"), 1.0)
    return wait


def _number(value: Any, unit: float) -> float | None:
    try:
        seconds = float(value) * unit
    except (TypeError, ValueError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _until(text: str) -> float | None:
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None
