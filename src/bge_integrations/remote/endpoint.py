"""Where requests go, and within which bounds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from ..catalog.records import Provider
from ..errors import ConfigError, InsecureHostError


class KeySource(Protocol):
    """Where the key comes from."""

    @property
    def value(self) -> str | None:
        """The key, or None where there is none."""
        ...

    def __call__(self) -> str | None:
        """Return the key; raises MissingKeyError where one is needed and there is none."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """A host as one encoder uses it.

    Attributes:
        provider: the host's record.
        base_url: without ``/embeddings`` or ``/embed``.
        wire_model: what is sent as ``model``.
        key: returns the key, or None; raises MissingKeyError where one is needed.

    Raises:
        InsecureHostError: plain http to a host that is not loopback.
    """

    provider: Provider
    base_url: str
    wire_model: str
    key: KeySource

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url must begin with https:// (or http:// for this machine), not {self.base_url!r}")
        if parts.username or parts.password:
            raise ConfigError("base_url must not hold a password: pass api_key=")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InsecureHostError(
                f"plain http to {parts.hostname!r} would show key and texts to the network: use https"
            )

    @property
    def name(self) -> str:
        """What the host is called in messages."""
        return self.provider.name

    def scrub(self, text: str) -> str:
        """Return ``text`` without the key."""
        key = self.key.value or ""
        return text.replace(key, "***") if len(key) >= 4 else text


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Limits:
    """Bounds of one encoder.

    Attributes:
        timeout: seconds for a whole call, waiting and retries included; None for as long as requests get finished.
        patience: seconds without a finished request that end a call without ``timeout``.
        connect_timeout: seconds to connect.
        read_timeout: seconds without a byte.
        max_retries: times that one request is sent again.
        max_concurrency: requests in flight.
        max_inputs: texts per request; the host's own cap, or 64, when None.
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
    max_retries: int = 6
    max_concurrency: int = 8
    max_inputs: int | None = None
    max_bytes: int = 1_500_000
    max_tokens: int = 64_000
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    backoff: float = 0.5
