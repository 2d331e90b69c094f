"""The one reader of the environment: variables, folders, and which hosts are this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError

__all__ = [
    "VARIABLES",
    "cache_folder",
    "cache_path",
    "expand_user",
    "is_loopback",
    "named_path",
    "switched_on",
    "variable",
    "variable_set",
]

VARIABLES = (
    "BGE_MODEL", "BGE_PROVIDER", "BGE_BASE_URL", "BGE_API_KEY", "BGE_CACHE", "BGE_ALLOW_HTTP",
    "BGE_SERVE_HOST", "BGE_SERVE_PORT",
)  # fmt: skip
"""What is read from the environment where the call does not say it."""


def variable(name: str) -> str | None:
    """Return an environment variable without the white space around it; None where it is empty or not set."""
    return (os.environ.get(name) or "").strip() or None


def switched_on(name: str) -> bool:
    """Return whether a variable is 1, true, yes or on, in any case.

    Raises:
        ConfigError: it is neither that nor 0, false, no, off or empty.
    """
    value = (variable(name) or "0").lower()
    if value not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ConfigError(f"{name} must be 1 or 0, not {value!r}")
    return value in ("1", "true", "yes", "on")


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the length of a ``with`` block, for processes that are started in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def named_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as it is; a blank one is most often a variable that is not set, and would be the working directory.

    Raises:
        ConfigError: it is blank.
    """
    if not os.fspath(path).strip():
        raise ConfigError(f"{os.fspath(path)!r} names no file or folder: is a variable not set?")
    return Path(path)


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises:
        ConfigError: it is blank, or it begins with ``~`` and no home folder is known.
    """
    try:
        return named_path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{os.fspath(path)!r} needs a home folder, but none is known: set HOME") from None


def cache_folder() -> Path:
    """Return the user's folder for what this package keeps: ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        ConfigError: neither is known.
    """
    given = variable("XDG_CACHE_HOME")
    return (Path(given) if given else expand_user("~/.cache")) / "bge-integrations"


def cache_path() -> Path:
    """Return the SQLite file that ``cache=True`` uses.

    Raises:
        ConfigError: ``BGE_CACHE`` is not set and no home folder is known.
    """
    given = variable("BGE_CACHE")
    return expand_user(given) if given else cache_folder() / "vectors.sqlite"


def is_loopback(host: str, *, bound: bool = False) -> bool:
    """Tell whether a host is this machine.

    Args:
        host: a name or an address.
        bound: whether a server is to listen there: it listens on every network at 0.0.0.0, where a client reaches only
            this machine.
    """
    from ipaddress import IPv6Address, ip_address  # not at the top: a first vector does not need it

    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or (address.is_unspecified and not bound)
