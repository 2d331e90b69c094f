"""Run the app: in the foreground with one or more processes, or on a thread."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..core.encoder import Encoder
from ..errors import ConfigError
from .app import build_app
from .connection import config_of
from .limits import Limits

log = logging.getLogger("bge_integrations.server")


@dataclass(frozen=True)
class AppFactory:
    """Builds the app in each worker process; the encoder travels as a pickle and loads its model there."""

    encoder: Encoder
    limits: Limits
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Build it."""
        _show_log()
        return build_app(self.encoder, limits=self.limits, **self.options)


def run_server(
    encoder: Encoder, *, host: str, port: int, workers: int, limits: Limits, api_keys: Sequence[str], **options: Any
) -> None:
    """Serve until SIGTERM or SIGINT; see ``serve``."""
    _show_log()
    if not _is_loopback(host) and not api_keys:
        log.warning("listening on %s without a key: whoever reaches this port can use it", host)
    sock = _bind(host, port)
    factory = AppFactory(encoder, limits, {"api_keys": list(api_keys), **options})
    config = config_of(factory, limits, factory=True, workers=workers)
    url = url_of(host, sock.getsockname()[1])
    log.info("serving %s at %s (page), %s/embed and %s/v1/embeddings; docs at %s/docs", encoder.card.id, *[url] * 4)
    try:
        if workers > 1:
            Multiprocess(config, sockets=[sock]).run()
        else:
            uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        sock.close()


@contextlib.contextmanager
def run_background(encoder: Encoder, *, host: str, port: int, limits: Limits, **options: Any) -> Iterator[str]:
    """Serve on a thread; see ``background``."""
    sock = _bind(host, port)
    config = config_of(build_app(encoder, limits=limits, **options), limits)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="bge-server", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield url_of(host, sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(limits.drain_seconds + 5)
        sock.close()


def _show_log() -> None:
    """Send our lines to stderr, unless the program lets them through to a place of its own."""
    if not (log.hasHandlers() and log.isEnabledFor(logging.INFO)):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host!r} port {port}: {error.strerror}; choose another port") from error
    sock.set_inheritable(True)
    return sock


def url_of(host: str, port: int) -> str:
    """Return the URL under which this machine reaches the server."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
