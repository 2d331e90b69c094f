"""Where requests go, with which secrets, and within which bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from ..catalog.records import Provider
from ..environment import is_loopback
from ..errors import BGEWarning, ConfigError, InsecureHostError, warn

__all__ = ["Endpoint", "HostLimits", "SecretHeaders", "split_url"]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\t -~]*")
_FRAMING = ("connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade")
_WARNED: set[str] = set()  # hosts that plain http was allowed for


@dataclass(frozen=True)
class Endpoint:
    """A host as one encoder uses it.

    Attributes:
        provider: the host's record.
        base_url: without ``/embeddings`` or ``/embed``; its query is sent with every request.
        wire_model: what is sent as ``model``.
        key: returns the key, or None; raises MissingKeyError where one is needed.
        headers: sent with every request; the values are secrets.
        allow_http: whether plain http may leave this machine.
        key_changes: whether ``key`` is asked for each request, and once more after a 401.

    Raises:
        ConfigError: ``base_url`` is no http(s) URL, or holds a password.
        InsecureHostError: plain http to a host that is not this machine, without ``allow_http``.
    """

    provider: Provider
    base_url: str
    wire_model: str
    key: Callable[[], str | None] = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    allow_http: bool = False
    key_changes: bool = False

    def __post_init__(self) -> None:
        parts = split_url(self.base_url)
        if not isinstance(self.headers, SecretHeaders):
            object.__setattr__(self, "headers", SecretHeaders(self.headers))
        object.__setattr__(self, "_secrets", set())  # keys that were sent, for `scrub`
        host = parts.hostname or ""
        if parts.scheme != "http" or is_loopback(host):
            return
        if not self.allow_http:
            raise InsecureHostError(
                f"plain http to {host!r} is refused, because anyone on the network could read the key and the "
                "texts: use https, or pass allow_http=True (BGE_ALLOW_HTTP=1) if you trust that network"
            )
        if host not in _WARNED:
            _WARNED.add(host)
            warn(
                f"plain http to {host!r}, which allow_http permits: anyone on the network can read the key "
                "and the texts",
                BGEWarning,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_secrets"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _secrets=set())

    def __deepcopy__(self, memo: dict[int, Any]) -> Endpoint:
        return self

    @property
    def name(self) -> str:
        """What the host is called in messages."""
        return self.provider.name

    @property
    def address(self) -> str:
        """The base URL without its query, which may hold a secret."""
        return split_url(self.base_url)._replace(query="", fragment="").geturl().rstrip("/")

    @property
    def root(self) -> str:
        """The server's root: the address without the version and ``/openai`` at its end."""
        return re.sub(r"(/v\d+)?(/openai)?(/v\d+)?$", "", self.address)

    @property
    def query(self) -> dict[str, str]:
        """The query of the base URL."""
        return dict(parse_qsl(split_url(self.base_url).query, keep_blank_values=True))

    @property
    def on_this_machine(self) -> bool:
        """Whether requests stay on this machine."""
        return is_loopback(split_url(self.base_url).hostname or "")

    def secret(self) -> str | None:
        """Return the key as it is sent.

        Raises:
            MissingKeyError: the host needs one and there is none.
            ConfigError: it holds what no header may hold; the message does not show it.
        """
        key = self.key()
        key = key.strip() if isinstance(key, str) else None
        if not key:
            return None
        self._seen.add(key)
        if _fits_header(key):
            return key
        del key  # not in tracebacks with locals
        raise _no_header("the key")

    @property
    def _seen(self) -> set[str]:
        seen: set[str] = self.__dict__["_secrets"]
        return seen

    def scrub(self, text: str) -> str:
        """Return ``text`` without keys and header values, however they are quoted in it."""
        values = list(self.headers.known()) if isinstance(self.headers, SecretHeaders) else []
        words = [value.split()[-1] for value in values if value]  # "Bearer …" is repeated without its first word
        secrets = {*self._seen, *values, *words, *self.query.values()}
        for secret in sorted((one for one in secrets if len(one) >= 4), key=len, reverse=True):
            for spelling in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret)):
                text = text.replace(spelling, "***")
        return text


class SecretHeaders(Mapping[str, str]):
    """Headers whose values are neither shown nor pickled.

    Raises:
        ConfigError: a name or value that HTTP does not allow, or values that stayed behind in another process.
    """

    _values: Mapping[str, str | None] = {}  # a half-made one can be shown

    def __init__(self, headers: Mapping[str, str]) -> None:
        for name in headers:  # no value gets a name, which tracebacks with locals would show
            if not isinstance(name, str) or not isinstance(headers[name], str):
                kind = type(headers[name]).__name__
                raise ConfigError(f"headers must map strings to strings; that of {name!r} is {kind}")
            if not _HEADER_NAME.fullmatch(name):
                raise ConfigError(f"{name.partition(':')[0]!r} is not a header name: headers= maps names to values")
            if name.lower() in _FRAMING:
                raise ConfigError(
                    f"the header {name!r} is set by the HTTP client, because it determines where a request ends: "
                    "leave it out"
                )
            if not _fits_header(headers[name]):
                raise _no_header(f"the value of the header {name!r}")
        self._values = {name: value.strip() for name, value in headers.items()}

    def known(self) -> list[str]:
        """Return the values that are here."""
        return [value for value in self._values.values() if value is not None]

    def __getitem__(self, name: str) -> str:
        value = self._values[name]
        if value is None:
            raise ConfigError(f"the value of the header {name!r} is not sent to other processes: pass headers= again")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name!r}: ***' for name in self._values)}}}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_values, (tuple(self._values),)


def _without_values(names: tuple[str, ...]) -> SecretHeaders:
    headers = SecretHeaders({})
    headers._values = dict.fromkeys(names)  # noqa: SLF001 - its own pickling
    return headers


def _fits_header(value: str) -> bool:
    # HTTP libraries quote the whole value where they refuse one: https://github.com/python-hyper/h11/issues/113
    # The SDK encodes headers as ASCII: https://github.com/openai/openai-python/blob/v2.0.0/src/openai/_base_client.py
    return _HEADER_VALUE.fullmatch(value) is not None


def _no_header(what: str) -> ConfigError:
    return ConfigError(
        f"{what} contains a line break, another control character or a non-ASCII character, which an "
        "HTTP header cannot hold: was something else copied with it?"
    )


def split_url(url: str) -> SplitResult:
    """Return the parts of a base URL.

    Raises:
        ConfigError: it is no http(s) URL, or it holds a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"base_url={_without_password(url)!r} is not a URL: {error}") from None
    if not url.isprintable():  # urlsplit drops line breaks in silence
        raise ConfigError(f"base_url={_without_password(url)!r} holds a control character")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = _without_password(url)
        raise ConfigError(f"base_url must begin with https:// (or http:// for this machine), not {shown!r}")
    if parts.username or parts.password:
        raise ConfigError("base_url must not hold a password: pass api_key=")
    return parts


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('//')[0]}//***{at}{tail}" if at else url


@dataclass(frozen=True)
class HostLimits:
    """Bounds of one encoder.

    Attributes:
        timeout: seconds for a whole call, tokenising, waiting and retries included; None for as long as requests get
            finished.
        patience: seconds without a finished request that end a call without ``timeout``.
        connect_timeout: seconds to connect.
        read_timeout: seconds without a byte; a request that takes longer is split in two.
        max_retries: times that one request is sent again; when None, 6, or with ``timeout`` as often as fits into it
            where the host says that it is busy (429, 503).
        max_concurrency: requests in flight.
        max_inputs: texts per request; the host's own limit, or 64, when None.
        max_bytes: bytes of text per request (TEI refuses bodies over 2 MB).
        max_tokens: tokens per request, where they can be counted.
        requests_per_minute: pace of all requests together.
        tokens_per_minute: pace of all tokens together.
        backoff: seconds before the first retry; doubles with each.
    """

    timeout: float | None = None
    patience: float = 600.0
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    max_retries: int | None = None
    max_concurrency: int = 8
    max_inputs: int | None = None
    max_bytes: int = 1_500_000
    max_tokens: int = 64_000
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    backoff: float = 0.5
