"""What a failed request means: which error it is, and whether sending it again could help."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from ..errors import (
    AuthenticationError,
    BadAnswerError,
    HostError,
    HostUnavailableError,
    QuotaError,
    RateLimitError,
    RequestRefusedError,
    TooLargeError,
)
from ..keys import Key
from .endpoint import Endpoint
from .vectors import is_filled

# A refusal of the number or the length of texts. Hosts word it in their own languages and with any status.
_SIZE = re.compile(
    r"too[ _](large|long|big)|too many (inputs|texts|tokens|items|documents|elements|strings|sequences)|"
    r"(larger|longer|greater|more) than|less than|at most|out of memory|physical batch|context[ _](length|window|size)|"
    r"batch[ _-]?size|(exceed|limit|max)\w*\W+(\w+\W+){0,6}?(token|length|size|batch|input|item|text|char|context)|"
    r"(token|length|size|batch|input|item|text|char)\w*\W+(\w+\W+){0,6}?(exceed|limit|maximum|at most)|"
    r"or (fewer|less)|out of range|(length|size|count|number)\W+(\w+\W+){0,4}?should be|memory slot for batch|"
    r"zu (lang|groß|viele)|trop (long|grand|d['’e])|слишком|demasiad[oa]s?|muy larg[oa]|"
    r"过长|過長|太长|太長|过大|過大|太大|过多|過多|太多|超长|超長|超出|超过|超過|不能大于|不得大于|不能多于|最多|最大|上限|"
    r"長すぎ|大きすぎ|多すぎ|너무|초과",
    re.IGNORECASE,
)
# With 400, 413 and 422 less is enough: nothing else was wrong with these requests.
_SIZE_OF_A_REQUEST = re.compile(r"batch|exceed|maximum|max(imum)?[ _-]?(\w+[ _-])?(size|length|tokens|inputs|items)")
_BUSY = re.compile(
    r"rate.?limit|too many (requests|connections)|overload|capacity|concurren|queue|try again|"
    r"per (minute|second|hour|day)|"
    r"繁忙|频率|頻率|请求过多|請求過多|稍后|稍後|并发|並發|限流",
    re.IGNORECASE,
)
_BYTES = re.compile(r"token|entity|payload|body|bytes|content|length|长|長|길", re.IGNORECASE)
# Gateways and firewalls refuse a size with 403, too.
_ACCESS = re.compile(
    r"\bkeys?\b|credential|permi|auth|account|subscri|(api|access|bearer|your|this|invalid|expired) token|"
    r"密钥|权限|令牌",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient|quota|billing|credit|balance|funds|payment", re.IGNORECASE)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
_TRANSIENT = (408, 409, 424, 425)  # 424: a TEI whose back-end failed
_LONGEST_WAIT = 1e7  # seconds, four months: a host's number is bounded, so that a clock can add it

_UNITS = {"ms": 0.001, "m": 60.0, "h": 3600.0, "毫": 0.001, "分": 60.0, "小": 3600.0}
_SPAN = (
    r"(?<!\d)(\d{1,9}(?:\.\d{1,9})?) ?(milliseconds?|ms|minutes?|mins?|m(?![a-z])|hours?|h(?![a-z])|seconds?|secs?|"
    r"s(?![a-z])|毫秒|秒|分钟|小时)"
)
_WAIT = re.compile(
    rf"(?:retry|try again|wait|available|reset|重试|重試|等待)[^0-9]{{0,30}}(?:{_SPAN})(?: ?{_SPAN})?|{_SPAN} ?后",
    re.IGNORECASE,
)


def refusal(status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint) -> HostError:
    """Return the error for an answer that is not a success; it says what to do next and never holds the key."""
    answer = parse_json(body)
    whole = message_in(answer) or body[:4000].decode("utf-8", "replace")
    excerpt = quote(whole.encode("utf-8", "replace"), endpoint)
    wait = retry_after(headers, answer)
    # Time to search a text for words grows with its square: 64 kB of hostile ones held the event loop for 12 s.
    whole = whole if len(whole) <= 4000 else f"{whole[:2000]} … {whole[-2000:]}"
    if wait is None and status in (429, 503):
        wait = wait_in(f"{whole} {body[:4000].decode('utf-8', 'replace')}")
    kind, advice = _kind(status, whole, _codes(answer), headers, endpoint)
    if kind is TooLargeError:
        # Whether all texts together are too long, rather than too many.
        limit = "bytes" if _BYTES.search(whole) and "batch" not in whole.lower() else "texts"
        return TooLargeError(f"answered {status}: {excerpt}{advice}", status=status, retry_after=wait, limit=limit)  # type: ignore[arg-type]
    return kind(f"answered {status}{': ' if excerpt else ''}{excerpt}{advice}", status=status, retry_after=wait)


def _kind(
    status: int, message: str, codes: set[str], headers: Mapping[str, str], endpoint: Endpoint
) -> tuple[type[HostError], str]:
    # Words alone do not end a job: hosts word limits per minute as quota and billing, too.
    if status == 402 or codes & set(_QUOTA_CODES) or (status == 403 and _QUOTA.search(message)):
        return QuotaError, "; the account has no credit or quota left"
    if status == 401 or (status == 403 and (_ACCESS.search(message) or not _is_about_size(status, message))):
        return AuthenticationError, _about_keys(endpoint)
    if status == 407:
        return RequestRefusedError, "; a proxy on the way (HTTPS_PROXY, HTTP_PROXY) requires a user name and password"
    if status == 429 and "request too large" not in message.lower():
        return RateLimitError, "; requests_per_minute= or a smaller max_concurrency= sends requests more slowly"
    if _is_about_size(status, message):
        return TooLargeError, ""
    if status in _TRANSIENT or status >= 500:
        return HostUnavailableError, ""
    if 300 <= status < 400:
        where = quote(headers.get("location", "elsewhere").partition("?")[0].encode(), endpoint)
        return RequestRefusedError, f"; it redirects to {where}, which is not followed: is base_url right?"
    return RequestRefusedError, (_about_paths(endpoint, message) if status == 404 else "")


def _is_about_size(status: int, message: str) -> bool:
    if status in (413, 429):  # of 429, only OpenAI's "Request too large" comes here
        return True
    if status < 400 or status in (404, 502, 503, 504, 529) or _BUSY.search(message):
        return False
    return bool(_SIZE.search(message) or (status in (400, 422) and _SIZE_OF_A_REQUEST.search(message.lower())))


def _about_keys(endpoint: Endpoint) -> str:
    if isinstance(endpoint.key, Key):
        return f"; {endpoint.key.advice}"
    names = " or ".join(endpoint.provider.key_env) or "BGE_API_KEY"
    return f"; is the key right? It is read from {names}"


def _about_paths(endpoint: Endpoint, message: str) -> str:
    versions = re.findall(r"/v\d+[a-z0-9]*(?=/|$)", endpoint.address)
    if not versions:
        return "; does base_url= lack its /v1?"
    return (
        "" if "model" in message.lower() else f"; is {versions[-1]} in base_url= one too many, or at the wrong place?"
    )


def error_in(answer: Any, body: bytes, endpoint: Endpoint) -> HostError | None:
    """Return the error of an error object that came with status 200, or None where it is none."""
    if not isinstance(answer, Mapping) or is_filled(answer.get("data")) or is_filled(answer.get("embeddings")):
        return None
    if not any(answer.get(name) for name in ("error", "errors", "message", "detail", "msg")):
        return None
    status = next((int(code) for code in _codes(answer) if code.isdecimal() and len(code) == 3 and code[0] in "45"), 0)
    if status:
        return refusal(status, {}, body, endpoint).add(" (sent as a success)")
    excerpt = quote((message_in(answer) or str(body, "utf-8", "replace")).encode("utf-8", "replace"), endpoint)
    return BadAnswerError(f"the response is an error: {excerpt}", status=200)


def message_in(answer: Any, depth: int = 0) -> str:
    """Return what an error object says, in whichever shape hosts have: ``error``, ``detail``, ``message``, lists."""
    if isinstance(answer, str):
        return answer
    if depth > 5:
        return ""
    if isinstance(answer, list):
        return "; ".join(filter(None, (message_in(item, depth + 1) for item in answer[:3])))
    if isinstance(answer, Mapping):
        names = ("error", "errors", "detail", "message", "msg")
        found = (message_in(answer[name], depth + 1) for name in names if name in answer)
        return next(filter(None, found), "")
    return ""


def _codes(answer: Any) -> set[str]:
    """Return the codes and types of an error object."""
    inner = answer.get("error") if isinstance(answer, Mapping) else None
    objects = [one for one in (answer, inner) if isinstance(one, Mapping)]
    values = [one.get(name) for one in objects for name in ("code", "type", "status", "statusCode", "status_code")]
    return {str(value).lower()[:64] for value in values if isinstance(value, (str, int))}


def parse_json(body: bytes) -> Any:
    """Return the JSON of a refusal, or None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def quote(body: bytes, endpoint: Endpoint) -> str:
    """Return at most 200 characters of what a host said, on one line, without secrets and control characters."""
    whole = body[:_LONGEST_QUOTED].decode("utf-8", "replace")
    # Scrubbed before it is cut: half of a key would not be found.
    text = " ".join(endpoint.scrub(whole).split())[:200]
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


_LONGEST_QUOTED = 65_536


def retry_after(headers: Mapping[str, str], answer: Any = None) -> float | None:
    """Return the seconds that a host asks to wait, from a header (seconds, milliseconds, date) or its error object."""
    wait = _number(headers.get("retry-after-ms"), 0.001)
    stated = headers.get("retry-after")
    if wait is None:
        wait = _number(stated, 1.0)
    if wait is None and stated:
        wait = _until(stated, headers.get("date"))
    inner = answer.get("error") if isinstance(answer, Mapping) else None
    if wait is None and isinstance(inner, Mapping):  # gigarouter
        wait = _number(inner.get("retry_after_s"), 1.0)
    return wait


def wait_in(text: str) -> float | None:
    """Return the seconds to wait that a message names, such as ``try again in 1m30s``."""
    found = _WAIT.search(text)
    if found is None:
        return None
    groups = found.groups()
    parts = [(groups[i], groups[i + 1]) for i in range(0, len(groups), 2) if groups[i]]
    return min(sum(float(number) * _unit(unit) for number, unit in parts), _LONGEST_WAIT)


def _unit(name: str) -> float:
    name = name.lower()
    return _UNITS["ms"] if name.startswith(("ms", "milli")) else _UNITS.get(name[0], 1.0)


def _number(value: Any, unit: float) -> float | None:
    try:
        seconds = float(value) * unit
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else None


def _until(text: str, now: str | None) -> float | None:
    """Return the seconds to a date by the host's own clock where it shows it: ours may be wrong."""
    until, since = _timestamp(text), _timestamp(now)
    return None if until is None else _number(until - (time.time() if since is None else since), 1.0)


def _timestamp(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
