"""Inputs that are not on this machine's disk: ``s3://``, ``gs://``, ``hf://``, ``https://`` and all of fsspec's."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..environment import is_loopback, switched_on
from ..errors import BGEError, ConfigError, InsecureHostError, MissingExtraError
from ..extras import require

__all__ = ["RemoteFile", "expand_url", "is_url", "open_url"]

_HTTP = ("http://", "https://")
_INSTALLED_AS = {"smbclient": "smbprotocol", "libarchive": "libarchive-c"}


class RemoteFile(str):
    """The name of a file elsewhere, as it is shown and written: without user, password and query.

    Attributes:
        url: that is opened.
    """

    __slots__ = ("url",)
    url: str

    def __new__(cls, url: str) -> RemoteFile:
        """Make the name of a URL."""
        scheme, _, rest = url.partition("://")
        if url.startswith(_HTTP):
            rest = rest.partition("?")[0].partition("#")[0]
        host, slash, path = rest.partition("/")
        name = super().__new__(cls, f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")
        name.url = url
        return name

    def __getnewargs__(self) -> tuple[str]:
        """Return what makes the same name again."""
        return (self.url,)


def is_url(name: str) -> bool:
    """Tell whether a name is a URL."""
    scheme, mark, _ = name.partition("://")
    return bool(mark) and scheme.replace("+", "").replace("-", "").isalnum()


def expand_url(url: str, is_known: Callable[[str], bool]) -> list[RemoteFile]:
    """Return the files that a URL stands for: one, or those of a glob or folder, sorted; http has files alone.

    Args:
        url: of a file, glob or folder.
        is_known: whether a file of this name is read; asked for those of a folder.

    Raises:
        ConfigError: nothing is there, or it cannot be read.
        InsecureHostError: it is plain http to another machine, which ``BGE_ALLOW_HTTP`` does not allow.
        MissingExtraError: fsspec, or the package that it needs for this, is not installed.
    """
    name = RemoteFile(url)
    if url.startswith(_HTTP):
        _check_http(url)
        return [name]
    with _explained(name):
        system, path = _system(name)
        if any(mark in path for mark in "*?["):
            found = [each for each in system.glob(path) if system.isfile(each)]
        elif system.isdir(path):
            root = path.rstrip("/") + "/"
            parts = {each: each.removeprefix(root).split("/") for each in system.find(path)}
            found = [each for each, names in parts.items() if is_known(each) and not any(n[:1] == "." for n in names)]
        else:
            return [name]  # whether it is there is seen when it is read
        return [RemoteFile(system.unstrip_protocol(each)) for each in sorted(found)]


def _check_http(url: str, way: str = "") -> None:
    host = urlsplit(url).hostname or ""
    if url.lower().startswith("http://") and not is_loopback(host) and not switched_on("BGE_ALLOW_HTTP"):
        raise InsecureHostError(
            f"{way}plain http to {host!r} is refused, because anyone on the network could read and change "
            "the texts: use https, or set BGE_ALLOW_HTTP=1 if you trust that network"
        )


@contextmanager
def open_url(file: RemoteFile, count: Callable[[int], None], *, seekable: bool = False) -> Iterator[tuple[Any, int]]:
    """Open a file for its bytes; yields the stream and its size, 0 where that is not known.

    Args:
        file: of ``expand_url``.
        count: called with the number of bytes of each read.
        seekable: whether the stream has to seek; where the server cannot, the file is copied to the disk first.

    Raises:
        ConfigError: it cannot be read.
    """
    with _explained(file):
        system, path = _system(file)
        system.invalidate_cache()  # of sizes, which may have changed
        opened = system.open(path, "rb")
    with opened, io.BufferedReader(_Stream(file, opened, count), 1 << 20) as stream:
        size = getattr(opened, "size", None) or 0
        if not seekable or stream.seekable():
            yield stream, size
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
            size = copy.tell()
            copy.seek(0)
            yield copy, size


class _Stream(io.RawIOBase):
    """A file of fsspec whose errors are this package's own, and show no secrets."""

    def __init__(self, name: RemoteFile, opened: Any, count: Callable[[int], None]) -> None:
        self._name, self._opened, self._count = name, opened, count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        try:
            self._opened.seek(self._opened.tell())
        except (ValueError, OSError):  # http without ranges
            return False
        return bool(self._opened.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with _explained(self._name):
            return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def readinto(self, buffer: Any) -> int:
        with _explained(self._name):
            data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)


def _system(file: RemoteFile) -> tuple[Any, str]:
    fsspec = require("fsspec", extra="urls", purpose=file.partition("://")[0] + "://")
    options = {}
    if file.url.startswith(_HTTP):
        # A proxy of the environment is used as everywhere, but never for this machine.
        proxy = not is_loopback(urlsplit(file.url).hostname or "")
        options = {"client_kwargs": {"trust_env": proxy, "trace_configs": [_redirects()]}}
    system, path = fsspec.core.url_to_fs(file.url, **options)
    return system, path


@cache
def _redirects() -> Any:
    """Return a trace by which aiohttp refuses redirects to plain http, where the user may not name such a URL."""
    aiohttp = require("aiohttp", extra="urls", purpose="http://")

    async def check(_session: Any, _context: Any, params: Any) -> None:
        target = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
        _check_http(urljoin(str(params.url), target), f"{params.url.host!r} redirects to ")

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(check)
    return config


@contextmanager
def _explained(name: RemoteFile) -> Iterator[None]:
    """Raise whatever a file system raises as an error of this package, without what is secret in a URL."""
    try:
        yield
    except BGEError:
        raise
    except ImportError as error:
        scheme = name.partition("://")[0]
        # fsspec's own error names no module, the one that it came from does.
        module = error.name or getattr(error.__cause__, "name", None) or _package(scheme)
        package = _INSTALLED_AS.get(module.partition(".")[0], module.partition(".")[0])
        raise MissingExtraError(f"{scheme}:// needs {package}: pip install {package}") from None
    except Exception as error:  # noqa: BLE001 - botocore, aiohttp, ... have trees of their own
        if isinstance(error.__cause__, InsecureHostError):
            raise error.__cause__ from None
        raise ConfigError(f"{str(name)!r} cannot be read: {_reason(name, error)}") from None


def _package(scheme: str) -> str:
    known = require("fsspec.registry", extra="urls").known_implementations
    return str(known.get(scheme, {}).get("class", scheme))


def _reason(name: RemoteFile, error: Exception) -> str:
    # fsspec says of whatever goes wrong with http that there is no such file.
    cause = error.__cause__ or error
    if isinstance(error, FileNotFoundError) and (cause is error or getattr(cause, "status", 0) == 404):
        return "no such file"
    told = f"{type(cause).__name__}: {cause}".replace(name.url, name)
    for secret in filter(None, (urlsplit(name.url).query, urlsplit(name.url).netloc.rpartition("@")[0])):
        told = told.replace(secret, "***")
    return " ".join(told.split())[:300]
